"""Start multiprocessing's forkserver as a fork of the supervisor: what both of them import is imported once.

The forkserver is otherwise a new Python that imports boto3 and the rest again, before the first worker can start:
half a second of CPU and of waiting for every run. Everything else about it stays multiprocessing's own: the fork
runs the very command that the new Python would have run.

A fork inherits more than a new process. So it is made while the supervisor has one thread only (otherwise the
forkserver starts as a new Python after all); the lock is let go of in it (`adapters/lock.py`); and signals are
held back until `undisturbed` ignores them; and the supervisor's ends of pipes that somebody waits for are closed.
Other open files are left alone: objects still refer to them, nobody uses them, and they are gone with the supervisor.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.process import BaseProcess
from typing import Any

from b2s.errors import WorkerFailed
from b2s.processes.signals import STOP_SIGNALS


def ensure_running() -> None:
    """Have the forkserver run; return when it does. One that runs already is kept."""
    resource_tracker.ensure_running()  # a new Python in any case: it has to outlive us
    if threading.active_count() > 1:
        forkserver.ensure_running()
        return
    with _forked_instead_of_started():
        forkserver.ensure_running()


def start(process: BaseProcess) -> None:
    """Have the forkserver start a process.

    Raises:
        WorkerFailed: It died meanwhile; the next process gets a new one.
    """
    try:
        try:
            process.start()
        except ConnectionRefusedError:  # nothing was sent yet, and the dying one is replaced once it is dead
            end()
            ensure_running()
            process.start()
    except (EOFError, ConnectionError) as error:
        raise WorkerFailed(
            "the process that starts the others was killed while it started one",
            hint="look for memory limits; run the same command again to go on",
        ) from error


def end() -> None:
    """End the forkserver, and with it every process it started: also one whose start a signal broke off.

    The kernel signals its children before it can be waited for. The next process gets a new forkserver.
    """
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # there is no public way
    if pid is None:
        return
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except (ProcessLookupError, ChildProcessError):
        return  # it was gone


@contextmanager
def _forked_instead_of_started() -> Iterator[None]:
    # What starts a Python for multiprocessing, since 3.4: (executable, arguments, descriptors to inherit) -> pid.
    started = util.spawnv_passfds
    util.spawnv_passfds = _fork  # type: ignore[assignment]
    try:
        yield
    finally:
        util.spawnv_passfds = started


def _fork(_executable: str, arguments: Sequence[object], descriptors: Sequence[int]) -> int:
    """Run the Python command that ends the arguments in a fork; return its pid."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()  # what is in the buffer would be written by both
    held_back = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _become_forkserver(str(arguments[-1]), descriptors, held_back)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held_back)


def _become_forkserver(command: str, descriptors: Sequence[int], signal_mask: set[int | signal.Signals]) -> None:
    """Run the forkserver in this process until it ends; never returns."""
    status, tell = 1, sys.__excepthook__
    try:
        from b2s.processes import undisturbed  # noqa: F401 - from here on the stop signals are ignored

        signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
        _close_other_ends(descriptors)
        _let_go_of_tracker()
        tell = sys.excepthook  # from here on the supervisor may go away, which is nothing to tell
        exec(command, {"__name__": "__main__"})
    except SystemExit:
        status = 0  # how it ends when the supervisor is gone
    except BaseException:  # noqa: BLE001 - nobody is above this: told here or nowhere
        tell(*sys.exc_info())
    finally:
        os._exit(status)


def _close_other_ends(descriptors: Sequence[int]) -> None:
    """Close our copies of the supervisor's ends of the given pipes: the forkserver ends when the supervisor's do."""
    inodes = {facts.st_ino for facts in map(os.fstat, descriptors) if stat.S_ISFIFO(facts.st_mode)}
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        try:
            facts = os.fstat(descriptor)
        except OSError:
            continue  # the listing's own
        if descriptor not in descriptors and stat.S_ISFIFO(facts.st_mode) and facts.st_ino in inodes:
            os.close(descriptor)


def _let_go_of_tracker() -> None:
    """Close our copy of the pipe whose end tells the resource tracker to end.

    From Python 3.12.10 and 3.13.3 on the supervisor, at its end, waits for the tracker, and we end after both.
    Source: github.com/python/cpython/issues/146313 (read 2026-11).
    """
    tracker: Any = resource_tracker._resource_tracker  # there is no public way
    if tracker._fd is not None:
        os.close(tracker._fd)
        tracker._fd = tracker._pid = None
