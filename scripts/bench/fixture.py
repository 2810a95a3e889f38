"""What is backed up: a btrfs filesystem on a loop device in memory, with a full and a 10 % incremental to send."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

MIB = 1 << 20
FILES_PER_GIB = 4000
CHANGED_SHARE = 0.1
SEED = 6


@dataclass(frozen=True, slots=True)
class Sendable:
    """One stream to send."""

    name: str  # "full" or "incremental"
    origin: Path  # what `snapshot` is a snapshot of
    snapshot: Path
    argv: tuple[str, ...]  # sends `snapshot`
    bytes: int


class Filesystem:
    """A btrfs of its own on a sparse image; a context manager that leaves nothing behind."""

    def __init__(self, directory: Path, name: str, size_bytes: int, options: str = "") -> None:
        self.image = directory / f"{name}.img"
        self.path = directory / name
        self.path.mkdir()
        with self.image.open("wb") as image:
            image.truncate(size_bytes)
        _run("mkfs.btrfs", "-q", "-K", self.image)
        _run("mount", "-o", f"loop,{options}".rstrip(","), self.image, self.path)

    def subvolume(self, name: str) -> Path:
        """Make a subvolume."""
        _run("btrfs", "-q", "subvolume", "create", self.path / name)
        return self.path / name

    def snapshot(self, source: Path, name: str, *, writable: bool = False) -> Path:
        """Make a snapshot."""
        _run("btrfs", "-q", "subvolume", "snapshot", *([] if writable else ["-r"]), source, self.path / name)
        return self.path / name

    def delete_below(self, directory: Path) -> None:
        """Delete every subvolume directly in a directory, and the directory."""
        if not directory.is_dir():
            return
        for entry in sorted(directory.iterdir()):
            if entry.is_dir() and entry.stat().st_ino == 256:
                delete_subvolume(entry)
        shutil.rmtree(directory)

    def sync(self) -> None:
        """Commit, and wait until deleted subvolumes are gone: cleaning them costs whoever runs meanwhile."""
        _run("btrfs", "filesystem", "sync", self.path)  # wakes the cleaner, which else looks every 30 s
        _run("btrfs", "subvolume", "sync", self.path)
        _run("btrfs", "filesystem", "sync", self.path)

    def close(self) -> None:
        """Unmount and delete."""
        if self.path.is_mount():
            _run("umount", self.path)
        self.image.unlink(missing_ok=True)
        if self.path.is_dir():
            self.path.rmdir()

    def __enter__(self) -> Self:
        """Return the mounted filesystem."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unmount and delete."""
        self.close()


class Fixture(Filesystem):
    """The filesystem that is backed up.

    `full` and `incremental` are what peers are fed, from snapshots that `renew` takes anew for every run. b2s makes its
    own snapshots: it gets `source`, a writable subvolume in the first state (`reset_source`), which `change_source`
    takes to the second. So every tool is fed by a `btrfs send` of what nobody has read yet, as a backup is: the inodes
    of a snapshot that was sent before are in the kernel's cache, and sending it again takes an eighth less time.
    """

    def __init__(self, directory: Path, stream_bytes: int, options: str = "", *, compressible: bool = False) -> None:
        super().__init__(directory, "source-fs", 3 * stream_bytes + 1024 * MIB, options)
        try:
            data = self.subvolume("data")
            self._names = fill(data, stream_bytes, compressible=compressible)
            first = self.snapshot(data, "first")
            self._changed = random.Random(SEED).sample(self._names, int(len(self._names) * CHANGED_SHARE))
            for name in self._changed:
                _write(data / name, (data / name).stat().st_size)
            second = self.snapshot(data, "second")
            self.sync()
            self.source = self.path / "source"
            self.snapshots = self.path / "b2s-snapshots"
            self.full = self._sendable("full", first)
            self.incremental = self._sendable("incremental", second, "-p", str(first))
        except BaseException:
            self.close()
            raise

    def compressed_bytes(self) -> int:
        """Return the length of the full stream with compressed extents sent as they are."""
        return self._sendable("compressed", self.path / "first", "--proto", "2", "--compressed-data").bytes

    def renew(self, sendable: Sendable) -> None:
        """Take the snapshot that is sent anew."""
        if sendable.snapshot.exists():
            delete_subvolume(sendable.snapshot)
        self.snapshot(sendable.origin, sendable.snapshot.name)
        self.sync()

    def _sendable(self, name: str, origin: Path, *options: str) -> Sendable:
        snapshot = self.path / f"sent-{name}"
        argv = ("btrfs", "send", "-q", *options, str(snapshot))
        sendable = Sendable(name, origin, snapshot, argv, 0)
        self.renew(sendable)
        return replace(sendable, bytes=_length_of(argv))

    def reset_source(self) -> None:
        """Put `source` into the first state, and remove every snapshot made of it."""
        if self.source.exists():
            delete_subvolume(self.source)
        self.delete_below(self.snapshots)
        self.snapshot(self.path / "first", "source", writable=True)
        self.sync()

    def change_source(self) -> None:
        """Take `source` to the second state, file by file, sharing the data with it."""
        _run("cp", "--reflink=always", "--parents", "-t", self.source, *self._changed, cwd=self.path / "second")
        self.sync()


def fill(directory: Path, size_bytes: int, *, compressible: bool = False) -> list[str]:
    """Write files, most of them small, of data that does not compress, or to about a half; return their names."""
    chance = random.Random(SEED)
    wanted = max(20, FILES_PER_GIB * size_bytes >> 30)
    sizes = [chance.choice((4, 8, 16, 30, 60, 100, 200, 400, 1000, 3000)) * 1024 for _ in range(wanted)]
    scale = size_bytes / sum(sizes)
    names = []
    for number, size in enumerate(sizes):
        name = f"d{number % 40:02d}/file-{number:05d}"
        (directory / name).parent.mkdir(exist_ok=True)
        _write(directory / name, max(1, int(size * scale)), compressible=compressible)
        names.append(name)
    return names


def delete_subvolume(path: Path) -> None:
    """Delete a subvolume."""
    _run("btrfs", "-q", "subvolume", "delete", path)


def _write(path: Path, size: int, *, compressible: bool = False) -> None:
    with path.open("wb") as file:
        while size > 0:
            count = min(size, MIB)
            file.write((os.urandom(count // 2 + 1).hex())[:count].encode() if compressible else os.urandom(count))
            size -= MIB


def _length_of(argv: tuple[str, ...]) -> int:
    """Run a command and return how many bytes it writes."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as send:
        assert send.stdout is not None
        size = 0
        while piece := send.stdout.read(MIB):
            size += len(piece)
    if send.returncode:
        raise RuntimeError(f"{' '.join(argv)} failed")
    return size


def _run(*argv: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))[:200]}: {done.stderr.strip()}")
