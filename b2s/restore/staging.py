"""The private directory that `btrfs receive` writes into, and what is kept of it.

    <beside the target>/.b2s-staging-<run_id>/            0700
        owner.json                                        whose it is, so that a later run can tell a dead one's
        received/                                         0700, empty: `btrfs receive -C` is locked into it
    <beside the target>/.b2s-received/<source>/<backup_id>  read-only, with its received_uuid

A read-only subvolume cannot be renamed into another directory (EROFS), so what was received is kept as a read-only
snapshot of it: the kernel hands its `received_uuid` on, and later incrementals apply to it just the same. The original
is deleted with the staging directory.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from b2s.adapters import btrfs
from b2s.adapters.logs import get_logger
from b2s.core import events
from b2s.core.manifest import SnapshotIdentity
from b2s.core.model import SubvolumeFacts
from b2s.core.snapshots import is_untouched
from b2s.errors import BtrfsError, NotASubvolume, SourceMissing, StreamRefused, SubvolumeBusy, TargetExists, UsageError

STAGING_PREFIX = ".b2s-staging-"
RECEIVED_DIRECTORY = ".b2s-received"
OWNER_FILE = "owner.json"


def check_target(target: Path) -> Path:
    """Return the absolute target, if a subvolume can appear there.

    Everything that can be known is asked now: afterwards archived chunks are asked for, and paid for.

    Raises:
        TargetExists: Something lies there already.
        UsageError: The directory it would lie in does not exist, is not on btrfs, or is read-only.
    """
    target = Path(os.path.abspath(target))
    if os.path.lexists(target):
        raise TargetExists(
            f"{target} exists already", hint="name a target that does not exist yet; b2s overwrites nothing"
        )
    try:
        btrfs.filesystem_uuid_of(str(target.parent))
    except SourceMissing as error:
        raise UsageError(
            f"the directory {target.parent} does not exist", hint="create it on a btrfs filesystem"
        ) from error
    except NotASubvolume as error:
        raise UsageError(
            f"{target.parent} is not a directory on a btrfs filesystem",
            hint="a restore needs btrfs: mkfs.btrfs a disk, mount it, and name a target below the mount point",
        ) from error
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"{target.parent} is read-only", hint="mount it writable: mount -o remount,rw")
    return target


class Staging:
    """The staging directory of one run, beside the target."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.receive_path = path / "received"

    @classmethod
    def create(cls, beside: Path, run_id: str, owner: dict[str, object]) -> Staging:
        """Make it.

        Args:
            beside: The directory the target will lie in.
            run_id: Names it.
            owner: What `sweep_staging` later hands to its `is_alive`.

        Raises:
            BtrfsError: It cannot be made (read-only, full, no permission).
        """
        staging = cls(beside / f"{STAGING_PREFIX}{run_id}")
        try:
            staging.path.mkdir(mode=0o700)
            (staging.path / OWNER_FILE).write_text(json.dumps(owner))
            staging.receive_path.mkdir(mode=0o700)
        except OSError as error:
            raise BtrfsError(
                f"the staging directory {staging.path} cannot be made: {error.strerror}",
                hint="is the filesystem full or mounted read-only? run as root",
            ) from error
        return staging

    def received(self, expected_uuid: str, expected_ctransid: int) -> SubvolumeFacts:
        """Return the one subvolume that a successful receive left, after checking that it is the right one.

        Args:
            expected_uuid: What the stream calls its snapshot.
            expected_ctransid: The snapshot's last transaction, as the stream says.

        Raises:
            StreamRefused: There is nothing, more than one thing, or not the read-only subvolume expected.
        """
        names = os.listdir(self.receive_path)
        if len(names) != 1:
            raise StreamRefused(f"btrfs receive left {len(names)} entries in its directory instead of one subvolume")
        path = self.receive_path / names[0]
        try:
            if path.is_symlink():
                raise StreamRefused("btrfs receive left a symbolic link instead of a subvolume")
            facts = btrfs.subvolume_facts(str(path))
        except NotASubvolume as error:
            raise StreamRefused("btrfs receive left something that is not a subvolume") from error
        right = (facts.received_uuid, facts.stransid) == (expected_uuid, expected_ctransid)
        if not facts.read_only or not right:
            state = "read-only" if facts.read_only else "writable"
            raise StreamRefused(
                f"what was received is {state} with received_uuid {facts.received_uuid} (transaction "
                f"{facts.stransid}), expected read-only with {expected_uuid} (transaction {expected_ctransid})"
            )
        return facts

    def empty(self) -> None:
        """Delete what a receive left, whole or partial; the directory stays.

        Raises:
            BtrfsError: Something cannot be deleted.
        """
        _delete_content(self.receive_path)

    def remove(self) -> None:
        """Delete everything: partial subvolumes, then the directories.

        Raises:
            BtrfsError: Something cannot be deleted.
        """
        _remove_staging(self.path)


def sweep_staging(beside: Path, is_alive: Callable[[dict[str, Any]], bool]) -> list[Path]:
    """Remove the staging directories of dead runs and return their paths.

    Only real directories of our name that are ours and closed to others are touched.
    """
    removed: list[Path] = []
    for path in sorted(beside.glob(f"{STAGING_PREFIX}*")):
        facts = path.lstat()
        if path.is_symlink() or not path.is_dir() or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            continue
        if is_alive(_owner_of(path)):
            continue
        try:
            _remove_staging(path)
        except SubvolumeBusy as error:
            get_logger().warning(events.ORPHAN_KEPT, path=str(path), error=error.message)
            continue
        removed.append(path)
    return removed


class ReceivedStore:
    """What was received of one source and is kept, read-only, beside the target."""

    def __init__(self, beside: Path, source: str) -> None:
        self.path = beside / RECEIVED_DIRECTORY / source

    def find(self, snapshot: SnapshotIdentity) -> SubvolumeFacts | None:
        """Return a kept subvolume that is the whole, untouched reception of this snapshot, or None.

        Whatever its name is. One that was made writable since has lost its `received_uuid`, or shows a change after
        it was received.
        """
        for facts in btrfs.list_snapshots(str(self.path)):
            same = (facts.received_uuid, facts.stransid) == (snapshot.uuid, snapshot.ctransid)
            if same and facts.read_only and is_untouched(facts):
                return facts
        return None

    def keep(self, received: SubvolumeFacts, backup_id: str) -> SubvolumeFacts:
        """Keep what was received: from now on it survives the staging directory.

        The name is the backup id; one that is taken (by a kept subvolume that someone changed) gets a number.

        Raises:
            BtrfsError: It cannot be made.
        """
        for directory in (self.path.parent, self.path):
            _make_private(directory)
        kept = btrfs.create_snapshot(received.path, str(self._free_name(backup_id)))
        if kept.received_uuid != received.received_uuid:
            raise BtrfsError(f"{kept.path} did not inherit the received_uuid of what was received")
        return kept

    def drop(self, facts: SubvolumeFacts) -> None:
        """Delete one kept subvolume, and the directories when they are empty then.

        Raises:
            BtrfsError: It cannot be deleted.
        """
        btrfs.delete_subvolume(facts.path)
        for directory in (self.path, self.path.parent):
            try:
                directory.rmdir()
            except OSError:
                return  # holds others

    def _free_name(self, backup_id: str) -> Path:
        return next(path for path in self._names(backup_id) if not os.path.lexists(path))

    def _names(self, backup_id: str) -> Iterator[Path]:
        yield self.path / backup_id
        number = 2
        while True:
            yield self.path / f"{backup_id}.{number}"
            number += 1


def _make_private(directory: Path) -> None:
    """Make a directory (0700), or take one that is ours and that nobody else can write to."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        facts = directory.lstat()
    except OSError as error:
        raise BtrfsError(f"the directory {directory} cannot be made: {error.strerror}") from error
    if stat.S_ISLNK(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise BtrfsError(
            f"{directory} is a symbolic link, not ours, or writable by others",
            hint="what was received is kept there; make it a real directory of root, mode 0700",
        )


def _owner_of(staging: Path) -> dict[str, Any]:
    """Return what the owner file says; one that cannot be read belongs to nobody alive."""
    try:
        owner = json.loads((staging / OWNER_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _remove_staging(path: Path) -> None:
    try:
        received = path / "received"
        if received.is_dir():
            _delete_content(received)
            received.rmdir()
        (path / OWNER_FILE).unlink(missing_ok=True)
        path.rmdir()
    except OSError as error:
        raise BtrfsError(f"the staging directory {path} cannot be removed: {error.strerror}") from error


def _delete_content(directory: Path) -> None:
    """Delete what lies directly in a receive directory: subvolumes, and the plain things a crafted stream made."""
    with os.scandir(directory) as entries:
        found = list(entries)
    for entry in found:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
            continue
        try:
            btrfs.subvolume_facts(entry.path)
        except NotASubvolume:
            _delete_content(Path(entry.path))
            os.rmdir(entry.path)
            continue
        for nested in reversed(btrfs.nested_subvolumes(entry.path)):
            btrfs.delete_subvolume(os.path.join(entry.path, nested))
        btrfs.delete_subvolume(entry.path)
