"""Compare a restored subvolume with the snapshot it was sent from, where that is on this host."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from b2s.adapters import btrfs
from b2s.adapters.mounts import btrfs_mounts
from b2s.core.manifest import Manifest
from b2s.core.model import SubvolumeFacts
from b2s.errors import BtrfsError

BLOCK_BYTES = 1024 * 1024
DIFFERENCES_SHOWN_MAX = 20
_NESTED_SUBVOLUME_INODE = 2  # BTRFS_EMPTY_SUBVOL_DIR_OBJECTID: what a snapshot shows in the place of one


class Depth(StrEnum):
    """How much is compared."""

    FULL = "full"  # every entry and every byte
    SAMPLE = "sample"  # every entry, the content of some files
    NONE = "none"


@dataclass(slots=True)
class Comparison:
    """What was compared and what differs."""

    entries: int = 0
    files: int = 0  # whose content was read
    content_bytes: int = 0
    different: int = 0
    differences: list[str] = field(default_factory=list)  # the first ones, for people

    def differ(self, path: bytes, what: str) -> None:
        """Note a difference."""
        self.different += 1
        if len(self.differences) < DIFFERENCES_SHOWN_MAX:
            self.differences.append(f"{os.fsdecode(path)!r}: {what}")


def find_sent_snapshot(manifest: Manifest) -> SubvolumeFacts | None:
    """Return the very snapshot that was sent, if some mount of this host reaches it and nothing changed it."""
    for mount in btrfs_mounts():
        try:
            if btrfs.filesystem_uuid_of(mount.mount_point) != manifest.source.filesystem_uuid:
                continue
            found = btrfs.find_by_uuid(mount.mount_point, manifest.snapshot.uuid)
        except BtrfsError:
            continue  # hidden by another mount, or not ours to ask
        for facts in found:
            same = facts.uuid == manifest.snapshot.uuid and facts.ctransid == manifest.snapshot.ctransid
            if same and facts.read_only:
                return facts
    return None


def compare_trees(expected: Path, actual: Path, sample_files: int | None, stop: Callable[[], None]) -> Comparison:
    """Compare names, kinds, owners, modes, times, extended attributes, links and content.

    Left out: the time of the top directory (`btrfs receive` may set it to its own), access and change times, and
    nested subvolumes, which no stream contains.

    Args:
        expected: The snapshot that was sent.
        actual: What was restored.
        sample_files: Of how many regular files, chosen at random, the content is read; None: of all.
        stop: Called between entries; raises to stop.
    """
    result = Comparison()
    chosen = _Chosen(sample_files)
    top = os.fsencode(expected), os.fsencode(actual)
    _compare_entry(top[0], top[1], b".", result, is_top=True)
    waiting = [b""]
    while waiting:
        directory = waiting.pop()
        for name in _common_names(top[0] + b"/" + directory, top[1] + b"/" + directory, directory, result):
            stop()
            path = directory + name
            paths = top[0] + b"/" + path, top[1] + b"/" + path
            kind = _compare_entry(*paths, path, result)
            if kind == stat.S_IFDIR:
                waiting.append(path + b"/")
            elif kind == stat.S_IFREG and not chosen.postpone(path):
                _compare_content(*paths, path, result, stop)
    for path in chosen.paths:
        _compare_content(top[0] + b"/" + path, top[1] + b"/" + path, path, result, stop)
    return result


class _Chosen:
    """A random sample of fixed size out of files whose number is not known before (reservoir sampling)."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._seen = 0
        self._random = random.Random()
        self.paths: list[bytes] = []

    def postpone(self, path: bytes) -> bool:
        """Take a file into the lottery; False when all files are to be compared at once."""
        if self._size is None:
            return False
        self._seen += 1
        if len(self.paths) < self._size:
            self.paths.append(path)
        elif (place := self._random.randrange(self._seen)) < self._size:
            self.paths[place] = path
        return True


def _common_names(expected: bytes, actual: bytes, shown: bytes, result: Comparison) -> list[bytes]:
    names = {entry.name for entry in _entries(expected) if not _is_nested_subvolume(entry)}
    found = {entry.name for entry in _entries(actual)}
    for name in sorted(names - found):
        result.differ(shown + name, "is missing")
    for name in sorted(found - names):
        result.differ(shown + name, "is not in the snapshot")
    return sorted(names & found)


def _entries(directory: bytes) -> Iterator[os.DirEntry[bytes]]:
    with os.scandir(directory) as entries:
        yield from entries


def _is_nested_subvolume(entry: os.DirEntry[bytes]) -> bool:
    # Asked of the directory itself: its entry carries the number of the nested subvolume's root.
    return entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_ino == _NESTED_SUBVOLUME_INODE


def _compare_entry(expected: bytes, actual: bytes, shown: bytes, result: Comparison, *, is_top: bool = False) -> int:
    """Compare two entries without their content; return the kind when it is the same, else 0."""
    result.entries += 1
    one, two = os.lstat(expected), os.lstat(actual)
    kind = stat.S_IFMT(one.st_mode)
    if kind != stat.S_IFMT(two.st_mode):
        result.differ(shown, "is of another kind")
        return 0
    compared = ["st_mode", "st_uid", "st_gid", "st_rdev"]
    compared += [] if is_top else ["st_mtime_ns"]
    compared += [] if kind == stat.S_IFDIR else ["st_size", "st_nlink"]
    for name in compared:
        if getattr(one, name) != getattr(two, name):
            result.differ(shown, f"has another {name.removeprefix('st_')}")
    if kind == stat.S_IFLNK and os.readlink(expected) != os.readlink(actual):
        result.differ(shown, "links to something else")
    if _attributes(expected) != _attributes(actual):
        result.differ(shown, "has other extended attributes")
    return kind


def _attributes(path: bytes) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names if name != "btrfs.compression"}


def _compare_content(
    expected: bytes, actual: bytes, shown: bytes, result: Comparison, stop: Callable[[], None]
) -> None:
    result.files += 1
    with open(expected, "rb", buffering=0) as one, open(actual, "rb", buffering=0) as two:
        while True:
            stop()
            left, right = one.read(BLOCK_BYTES), two.read(BLOCK_BYTES)
            if left != right:
                result.differ(shown, "has other content")
                return
            if not left:
                return
            result.content_bytes += len(left)
