"""The run lock: one `b2s backup` at a time, and a lock whose holder is gone is nobody's.

Two things make it. A flock on the file, held for the life of the supervisor, decides: the kernel drops it with
the process, whatever killed it, keeps it while the process is only stopped, and gives it to exactly one of many
that ask at once. The JSON in the file tells people and other runs who holds it; it is believed against us only
while the process it names still lives with the same create time in the same boot.

The descriptor is close-on-exec, so children that are spawned (not forked) never keep the lock alive.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from b2s.adapters import children, host
from b2s.adapters.children import ProcessId
from b2s.errors import LockHeld, LockRefused

_CONTENT_BYTES_MAX = 64 * 1024  # more than that was not written by us
_DECIDE_SECONDS = 1.0  # for the winner of a race to write who it is; SPEC row C01 allows 2
_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Holder:
    """Who a lock file names."""

    process: ProcessId
    host: str
    boot_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class StaleLock:
    """A lock that was taken over because its holder was gone."""

    run_id: str | None  # None: the file did not say, it was empty or garbage
    pid: int | None


class RunLock:
    """The run lock; acquire it once.

    Attributes:
        stale: What was taken over, None when the lock was free.
    """

    def __init__(self, path: str, run_id: str) -> None:
        self._path = os.path.abspath(path)
        self._run_id = run_id
        self._fd: int | None = None
        self.stale: StaleLock | None = None

    def acquire(self) -> StaleLock | None:
        """Take the lock, taking over one whose holder is gone.

        Never waits for the holder; blocks about a second at most.

        Returns:
            What was taken over, None when the lock was free.

        Raises:
            LockHeld: A living run holds it.
            LockRefused: What lies at the path is not a lock file, or the lock file cannot be written.
        """
        deadline = time.monotonic() + _DECIDE_SECONDS
        while True:
            holder = self._try_once()
            if self._fd is not None:
                return self.stale
            if holder is not None and _lives(holder):
                raise self._held(holder)
            if time.monotonic() >= deadline:
                # The kernel says that it is held. By whom it says only as surely as the host's clock was never set.
                raise self._held(holder)
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Remove the lock file and let go of it; without the lock, do nothing."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            if _is_at(fd, self._path):
                os.unlink(self._path)
        except OSError as error:
            raise LockRefused(
                f"the lock {self._path} could not be removed: {error.strerror}",
                hint="nothing holds it any more; the next run takes it over",
            ) from error
        finally:
            os.close(fd)

    def _forget(self) -> None:
        """Let go of our copy of the descriptor, in a fork; the lock stays with the process that took it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> Self:
        """Take the lock."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the lock."""
        self.release()

    def _try_once(self) -> Holder | None:
        """Try to take the lock; return who has it, as far as the file says."""
        try:
            fd = self._open()
        except OSError as error:
            raise self._refused(error) from error
        kept = False
        try:
            _check_is_ours(fd, self._path)
            if not _flocked(fd):
                return _holder(_content(fd))
            if not _is_at(fd, self._path):
                return None  # its holder removed it just now: look again
            content = _content(fd)
            holder = _holder(content)
            if holder is not None and _lives(holder):
                return holder
            self._write(fd)
            if content is not None:
                self.stale = StaleLock(
                    run_id=holder.run_id if holder else None, pid=holder.process.pid if holder else None
                )
            self._fd = fd
            # A fork would hold the lock on after us.
            os.register_at_fork(after_in_child=self._forget)
            kept = True
            return None
        except OSError as error:
            raise self._refused(error) from error
        finally:
            if not kept:
                os.close(fd)

    def _open(self) -> int:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        # O_NONBLOCK: a FIFO must not make us wait before we have seen that it is one.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(self._path, flags | os.O_CREAT, 0o600)

    def _write(self, fd: int) -> None:
        """Write who we are, in one call, so that nobody reads half of it."""
        me = children.this_process()
        content = {
            "pid": me.pid,
            "create_time": me.create_time,
            "host": os.uname().nodename,
            "boot_id": host.boot_id(),
            "run_id": self._run_id,
        }
        raw = json.dumps(content).encode() + b"\n"
        os.ftruncate(fd, 0)
        if os.pwrite(fd, raw, 0) != len(raw):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _held(self, holder: Holder | None) -> LockHeld:
        if holder is None:
            return LockHeld(f"another run holds the lock {self._path}")
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(holder.process.create_time))
        return LockHeld(
            f"run {holder.run_id} (pid {holder.process.pid}, since {since}) holds the lock {self._path}",
            holder_pid=holder.process.pid,
            holder_run_id=holder.run_id,
            holder_since=since,
        )

    def _refused(self, error: OSError) -> LockRefused:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            return _not_a_lock(self._path)
        return LockRefused(
            f"the lock file {self._path} cannot be used: {error.strerror}",
            hint=host.hint_for(error, "check lock_path: its directory must be writable for root and not be full"),
        )


def _flocked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: str) -> bool:
    """Tell whether the open file is still the one at `path`."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _check_is_ours(fd: int, path: str) -> None:
    """Refuse what we must not write into: no regular file, one with a second name, a big one."""
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1 or facts.st_size > _CONTENT_BYTES_MAX:
        raise _not_a_lock(path)


def _not_a_lock(path: str) -> LockRefused:
    return LockRefused(
        f"{path} is not a lock file of b2s (a symbolic link, a directory, or someone else's file)",
        hint="look at what it is, then remove it or set lock_path to another path",
    )


def _content(fd: int) -> bytes | None:
    """Return what the file holds; None for a file that was made just now, by us."""
    raw = os.pread(fd, _CONTENT_BYTES_MAX, 0)
    return raw or None


def _holder(content: bytes | None) -> Holder | None:
    """Return who the content names, None when it is no lock content."""
    try:
        fields: Any = json.loads(content or b"")
        pid, create_time = fields["pid"], fields["create_time"]
        if type(pid) is not int or type(create_time) not in (int, float):
            return None
        process = ProcessId(pid, float(create_time))
        return Holder(process, str(fields["host"]), str(fields["boot_id"]), str(fields["run_id"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _lives(holder: Holder) -> bool:
    """Tell whether the named process still runs: nothing of another boot does."""
    return holder.boot_id == host.boot_id() and children.is_alive(holder.process)
