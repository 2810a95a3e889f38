"""A long `btrfs send` or `btrfs receive`: started, watched, drained, and ended within bounds."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import threading
from typing import IO

from b2s.adapters.btrfs_tool import tool_environment
from b2s.adapters.priority import set_priority
from b2s.errors import BtrfsError

STDERR_TAIL_BYTES = 4096
_KILLED_SECONDS = 5.0  # how long after SIGKILL before the process counts as unkillable
_DRAINED_SECONDS = 2.0  # how long after its death the last of its stderr may take


class BtrfsProcess:
    """One running `btrfs`; make it with `start`.

    It runs in a session of its own: Ctrl-C reaches only the supervisor, which decides. It dies with its parent
    (PR_SET_PDEATHSIG through `setpriv`, which execs and so keeps the pid) where `setpriv` is installed.
    """

    def __init__(self, process: subprocess.Popen[bytes], argv: list[str]) -> None:
        self._process = process
        self._argv = argv
        self._tail = bytearray()
        self._tail_lock = threading.Lock()
        self._drain = threading.Thread(target=self._read_stderr, name="btrfs-stderr", daemon=True)
        self._drain.start()

    @classmethod
    def start(
        cls,
        argv: list[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        nice: int | None = None,
        ionice: str | None = None,
    ) -> BtrfsProcess:
        """Start the command, from the main thread: the death signal comes when the *thread* that started it ends.

        The caller owns `stdin` and `stdout` and closes its own ends of them afterwards; the process has copies.

        Args:
            argv: What `send_command` or `receive_command` returned.
            stdin: A file descriptor to read from; None: nothing.
            stdout: A file descriptor to write to; None: nowhere.
            nice: CPU niceness, -20 to 19; None leaves it.
            ionice: "idle", "best-effort" or "best-effort:0" to "best-effort:7"; None leaves it.

        Raises:
            BtrfsError: It could not be started.
        """
        try:
            process = subprocess.Popen(
                [*_death_signal_prefix(), *argv],
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=subprocess.DEVNULL if stdout is None else stdout,
                stderr=subprocess.PIPE,
                close_fds=True,
                env=tool_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise BtrfsError(f"{argv[0]} could not be started: {error.strerror}") from error
        started = cls(process, argv)
        try:
            set_priority(process.pid, nice, ionice)
        except BaseException:
            started.stop(0.0)
            raise
        return started

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status (negative: the signal), None while it runs."""
        return self._process.poll()

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait for the end at most this long; return the exit status, None when it still runs."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace_seconds: float = 5.0) -> int:
        """End it: TERM, wait, KILL, wait again; return the exit status.

        Blocks at most `grace_seconds` plus five seconds. For one that ended by itself only its status is fetched.

        Raises:
            BtrfsError: Even SIGKILL does not end it; the message names the pid. Its snapshot is still in use.
        """
        if grace_seconds > 0:
            self._signal_group(signal.SIGTERM)
            # A stopped process gets TERM only when it goes on.
            self._signal_group(signal.SIGCONT)
            self.wait(grace_seconds)
        self._signal_group(signal.SIGKILL)
        status = self.wait(_KILLED_SECONDS)
        if status is None:
            raise BtrfsError(
                f"{self._name()} (pid {self.pid}) does not end, not even by SIGKILL",
                hint="it waits in the kernel, perhaps for a frozen filesystem or a disk; look at the kernel log. "
                "Its snapshot stays in use until it is gone",
                pid=self.pid,
            )
        self._drain.join(_DRAINED_SECONDS)
        return status

    def stderr_tail(self) -> str:
        """Return the last 4 KiB it wrote to stderr, as text; after its end, all of them are there."""
        if self._process.poll() is not None:
            self._drain.join(_DRAINED_SECONDS)
        with self._tail_lock:
            return self._tail.decode("utf-8", "backslashreplace").strip()

    def describe_exit(self) -> str:
        """Return how it ended in words: "exit status 1", "killed by SIGKILL", "still running"."""
        return describe_exit(self._process.poll())

    def _signal_group(self, number: signal.Signals) -> None:
        """Signal it and what it started itself (`btrfs` may be a wrapper); nothing once it has ended."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _name(self) -> str:
        return " ".join([os.path.basename(self._argv[0]), *self._argv[1:2]])

    def _read_stderr(self) -> None:
        """Keep the last bytes of stderr and throw the rest away: a full pipe would stop the process."""
        stderr = self._process.stderr
        if stderr is None:
            return
        with stderr:
            while data := _read_some(stderr):
                with self._tail_lock:
                    self._tail += data
                    del self._tail[:-STDERR_TAIL_BYTES]


def describe_exit(status: int | None) -> str:
    """Return an exit status in words; a negative one is the signal that ended the process."""
    if status is None:
        return "still running"
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


@functools.cache
def _death_signal_prefix() -> tuple[str, ...]:
    """Return the command that makes the next one die with its parent; nothing where it is not installed.

    `Popen(preexec_fn=...)` could do the same without it, but deadlocks in a process with threads.
    """
    setpriv = shutil.which("setpriv", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/bin", "/bin"]))
    if setpriv is None:
        return ()
    try:
        known = subprocess.run([setpriv, "--help"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return (setpriv, "--pdeathsig", "KILL", "--") if b"--pdeathsig" in known.stdout else ()


def _read_some(stderr: IO[bytes]) -> bytes:
    return os.read(stderr.fileno(), 64 * 1024)


__all__ = ["STDERR_TAIL_BYTES", "BtrfsProcess", "describe_exit"]
