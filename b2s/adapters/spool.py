"""The spool: a private directory of fixed slot files that hold segments in flight.

A slot file is given its whole room before use (so a full disk is an error here and not a SIGBUS later), mapped
shared by every process that needs it, and reused for segment after segment: pages are paid for once. The same
code serves both places, `/dev/shm` for streaming and `spool.dir` for a spool on disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from b2s.core.limits import MIB
from b2s.errors import SpoolDamaged, SpoolFull, SpoolRefused

MEMORY_DIRECTORY = Path("/dev/shm")
DIRECTORY_PREFIX = "b2s-"
OWNER_FILE = "owner.json"
_SLOT_PREFIX = "slot-"

# Spools are named by their runs, and a run id looks like this (cli/invocation.py).
_SPOOL_NAME = re.compile(re.escape(DIRECTORY_PREFIX) + r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_ZEROS_BYTES = MIB
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Spool:
    """Slot files of one run, `slot_bytes` each.

    Disk and page cache hold at most ``slots * slot_bytes``; a slot is only made when it is first filled.
    """

    def __init__(self, path: Path, slot_bytes: int, *, writable: bool) -> None:
        self.path = path
        self.slot_bytes = slot_bytes
        self._writable = writable
        self._owner_fd: int | None = None  # of the run that made it; a lock on it lives as long as that run
        self._maps: dict[int, mmap.mmap] = {}
        self._descriptors: dict[int, int] = {}

    @classmethod
    def create(cls, parent: Path, run_id: str, slot_bytes: int, owner: dict[str, object]) -> Spool:
        """Make the private directory ``parent/b2s-<run_id>`` (0700) and say whose it is.

        Args:
            parent: `/dev/shm` or `spool.dir`; made (0700) when missing.
            run_id: Names the directory.
            slot_bytes: Size of every slot, the segment size.
            owner: What `sweep` later hands to its `is_alive`, e.g. pid and create time.

        Raises:
            SpoolRefused: `parent` is a symlink, no directory, or writable by others.
            SpoolFull: There is no room for even the directory.
        """
        path = parent / f"{DIRECTORY_PREFIX}{run_id}"
        made = cls(path, slot_bytes, writable=True)
        try:
            _check_parent(parent)
            path.mkdir(mode=0o700)
            made._label(owner)
        except OSError as error:
            made.remove()
            kind = SpoolFull if error.errno in _NO_ROOM else SpoolRefused
            raise kind(f"cannot make the spool {path}: {error.strerror}", hint="see spool.dir in the config") from error
        return made

    @classmethod
    def attach(cls, path: Path, slot_bytes: int, *, writable: bool) -> Spool:
        """Use a spool that another process made."""
        return cls(path, slot_bytes, writable=writable)

    def allocate(self, slot: int) -> None:
        """Give a slot its whole room, if it has none yet.

        Raises:
            SpoolFull: The filesystem has no room for it, or does not work any more; a partial file is removed.
        """
        file = self._file(slot)
        if slot in self._maps or file.exists():
            return
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if self.path.parent == MEMORY_DIRECTORY:
                    _write_zeros(descriptor, self.slot_bytes)
                else:
                    os.posix_fallocate(descriptor, 0, self.slot_bytes)
            except OSError:
                file.unlink()
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SpoolFull(
                f"no room for a segment of {self.slot_bytes} bytes in {self.path}: {error.strerror}",
                hint="free space there, lower s3.segment_size or s3.concurrency, or see spool.* in the config",
            ) from error

    def is_mapped(self, slot: int) -> bool:
        """Tell whether this process used the slot before."""
        return slot in self._maps

    def slot(self, slot: int) -> memoryview:
        """Return the slot's bytes, mapped shared; always `slot_bytes` long.

        Raises:
            SpoolDamaged: Somebody removed or shortened the file.
        """
        if slot not in self._maps:
            self._maps[slot] = self._mapped(self._file(slot))
        return memoryview(self._maps[slot])

    def descriptor(self, slot: int) -> int:
        """Return an open file of the slot, for reading; it stays ours.

        Raises:
            SpoolDamaged: Somebody removed the file.
        """
        if slot not in self._descriptors:
            try:
                self._descriptors[slot] = os.open(self._file(slot), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise SpoolDamaged(f"{self._file(slot)} is not as it was made: {error}") from error
        return self._descriptors[slot]

    def beginning(self, slot: int, size_bytes: int) -> bytes:
        """Return the first bytes of a slot without mapping it.

        Raises:
            SpoolDamaged: Somebody removed the file.
        """
        try:
            with self._file(slot).open("rb") as file:
                return file.read(size_bytes)
        except FileNotFoundError as error:
            raise SpoolDamaged(f"{self._file(slot)} is not as it was made: {error}") from error

    def _mapped(self, file: Path) -> mmap.mmap:
        access = mmap.PROT_READ | (mmap.PROT_WRITE if self._writable else 0)
        try:
            descriptor = os.open(file, os.O_CLOEXEC | (os.O_RDWR if self._writable else os.O_RDONLY))
            try:
                return mmap.mmap(descriptor, self.slot_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=access)
            finally:
                os.close(descriptor)
        except (FileNotFoundError, ValueError) as error:
            raise SpoolDamaged(f"{file} is not as it was made: {error}") from error

    def remove_slots(self) -> None:
        """Remove the files of all slots, whose content nobody needs any more: whoever still maps one keeps its room.

        Giving 200 MiB of memory back takes 20 ms, which those who end meanwhile then do. What cannot be removed now
        is left to `remove`.
        """
        with contextlib.suppress(OSError):
            for file in self.path.glob(f"{_SLOT_PREFIX}*"):
                file.unlink()

    def remove(self) -> None:
        """Remove the directory and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._owner_fd is not None:
            os.close(self._owner_fd)
            self._owner_fd = None

    def _label(self, owner: dict[str, object]) -> None:
        self._owner_fd = os.open(self.path / OWNER_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._owner_fd, fcntl.LOCK_EX)
        os.write(self._owner_fd, json.dumps(owner).encode())

    def _file(self, slot: int) -> Path:
        return self.path / f"{_SLOT_PREFIX}{slot:06d}"


def _write_zeros(descriptor: int, size_bytes: int) -> None:
    """Give a file its room in memory: pages that were written to are mapped four times as fast as pages set aside."""
    zeros = memoryview(bytes(_ZEROS_BYTES))
    written = 0
    while written < size_bytes:
        written += os.pwrite(descriptor, zeros[: size_bytes - written], written)


def sweep(parent: Path, is_alive: Callable[[dict[str, object]], bool]) -> list[Path]:
    """Remove the spools of dead runs under `parent` and return their paths.

    `parent` may be any directory of the host (`/tmp`, `/srv`), so what is not plainly a spool is never touched: only
    directories that bear a run's name, lie on the parent's own filesystem, are owned by us and closed to others, and
    of those only the files; nothing is removed below them. One without an owner in it was abandoned between its making
    and its labelling, and goes too; one whose disk does not say stays. Behind a symbolic link no spool was ever made.

    Raises:
        SpoolRefused: The directory cannot be read.
    """
    removed: list[Path] = []
    try:
        place = parent.lstat()
        if not stat.S_ISDIR(place.st_mode):
            return removed
        with os.scandir(parent) as entries:
            candidates = [Path(entry.path) for entry in entries if _SPOOL_NAME.fullmatch(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return removed
    except OSError as error:
        raise SpoolRefused(f"cannot look for spools in {parent}: {error.strerror}") from error
    for path in candidates:
        try:
            facts = path.lstat()
        except OSError:
            continue  # its run ended just now, or nothing can be told of it
        private = facts.st_uid == os.geteuid() and not stat.S_IMODE(facts.st_mode) & 0o077
        if not (stat.S_ISDIR(facts.st_mode) and private and facts.st_dev == place.st_dev):
            continue
        try:
            owner = json.loads((path / OWNER_FILE).read_text())
        except (OSError, ValueError):
            owner = {}
        if _is_held(path / OWNER_FILE) or (isinstance(owner, dict) and owner and is_alive(owner)):
            continue
        if _removed(path):
            removed.append(path)
    return removed


def _is_held(owner_file: Path) -> bool:
    """Tell whether the run that made a spool may live, also where the clock was set and start times mean nothing."""
    try:
        descriptor = os.open(owner_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        # A link or nothing at all was no run's. Of a disk that gives no answer nothing can be told.
        return error.errno not in {errno.ENOENT, errno.ELOOP, errno.ENXIO}
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


def _removed(path: Path) -> bool:
    """Remove a spool and the files in it; tell whether it is gone: where a directory lies in it, it is none."""
    try:
        with os.scandir(path) as entries:
            found = list(entries)
        if any(entry.is_dir(follow_symlinks=False) for entry in found):
            return False
        for entry in found:
            os.unlink(entry.path)
        path.rmdir()
    except OSError:
        return False
    return True


def _check_parent(parent: Path) -> None:
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = parent.lstat()
    if stat.S_ISLNK(facts.st_mode) or not stat.S_ISDIR(facts.st_mode):
        raise SpoolRefused(
            f"the spool directory {parent} is a symlink or no directory", hint="name a real directory in spool.dir"
        )
    shared = facts.st_mode & stat.S_IWOTH and not facts.st_mode & stat.S_ISVTX
    if shared:
        raise SpoolRefused(f"the spool directory {parent} is writable by others", hint=f"chmod 0700 {parent}")
