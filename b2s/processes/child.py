"""How a child process of b2s starts: who it is, that it dies with the supervisor, where it logs.

Children come from a forkserver: it has one thread whatever the supervisor does by then, boto3 is imported once for
all of them, and starting one costs milliseconds (spawn: 0.3 s each).
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import multiprocessing
import os
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing import process as processes
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.queues import Queue
from queue import Empty
from typing import Any

from b2s.adapters import logs
from b2s.core import events
from b2s.core.messages import Stop, TaskFailed, WorkerReady
from b2s.core.settings import LogSettings
from b2s.errors import B2sError
from b2s.processes.forkserver import ensure_running
from b2s.processes.signals import STOP_SIGNALS

_PRELOADED = [
    "b2s.processes.undisturbed",
    "b2s.cli.main",
    "b2s.adapters.bandwidth",
    "b2s.adapters.s3",
    "b2s.processes.chunker",
    "b2s.processes.uploader",
    "b2s.processes.downloader",
    "b2s.processes.feeder",
    "b2s.processes.preloaded",
]
_PR_SET_PDEATHSIG = 1  # Source: prctl(2), linux/prctl.h
_END_SECONDS_MAX = 2.0  # between SIGKILL and the end of a child


@dataclass(frozen=True, slots=True)
class ChildBoot:
    """What every child is told at its start."""

    run_id: str
    process: str  # the `process` field of its log lines
    log: LogSettings


def process_context() -> ForkServerContext:
    """Return the one way b2s starts processes: the forkserver runs, with the heavy imports made."""
    # The tracker of named semaphores would complain on stderr, between our JSON lines, after a killed supervisor; so
    # would we, and the forks of us, after a killed tracker.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    warnings.filterwarnings("ignore", "resource_tracker", UserWarning)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    ensure_running()
    _end_children_at_exit()
    return context


@functools.cache
def _end_children_at_exit() -> None:
    atexit.register(_end_children)  # after multiprocessing's own, so it runs before that


def _end_children() -> None:
    """End what an unclean way out left of our children.

    Python asks them by SIGTERM, which they ignore, and then waits without end, also for one that hangs in the kernel.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # this is as soon as it can be
    left = multiprocessing.active_children()
    for child in left:
        child.kill()
    deadline = time.monotonic() + _END_SECONDS_MAX
    for child in left:
        child.join(max(0.0, deadline - time.monotonic()))
        processes._children.discard(child)  # type: ignore[attr-defined]  # there is no public way


@contextmanager
def child_process(boot: ChildBoot, replies: Connection | None = None) -> Iterator[None]:
    """Bind this process to its supervisor and to the log, and report how it ends; wraps all a child does.

    The kernel kills it when the forkserver is gone, and the forkserver ends when the supervisor does. A known error
    goes to the supervisor; a bug goes to the log as one line, with its trace, and ends the process with 1.
    """
    _let_go_of_forkserver()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if os.getppid() == 1 or parent is None or not parent.is_alive():
        os._exit(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the supervisor hears them and ends us
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))  # a mapped spool slot costs one each
    logs.configure_child(boot.log, boot.run_id, boot.process)
    try:
        yield
    except B2sError as error:
        if replies is None:
            logs.get_logger().error(events.CHILD_FAILED, error=error.message, hint=error.hint)
            raise SystemExit(1) from None
        replies.send(TaskFailed(error.to_wire()))
    except Exception:  # noqa: BLE001 - the outermost boundary of a child: a bug is told, with its trace
        if not parent.is_alive():
            os._exit(1)  # nobody is left to answer to: the pipes broke with the supervisor
        logs.get_logger().error(events.CHILD_FAILED, error="a bug in b2s", trace=traceback.format_exc())
        raise SystemExit(1) from None


def serve(tasks: Queue[Any], replies: Connection, do: Callable[[Any], Any]) -> None:
    """Answer one task after the other until `Stop`: with what `do` returns, or with the error it raises."""
    replies.send(WorkerReady())
    while True:
        try:
            task = tasks.get(timeout=5.0)
        except Empty:
            continue  # the kernel ends us when the supervisor is gone
        if isinstance(task, Stop):
            return
        try:
            replies.send(do(task))
        except B2sError as error:
            replies.send(TaskFailed(error.to_wire()))


def _let_go_of_forkserver() -> None:
    """Close our copy of the pipe whose end tells the forkserver that nobody needs it any more.

    Python hands every child a copy, so that it could start processes itself. While one is open the forkserver lives
    on after its supervisor, and with it all of its children.
    """
    descriptor = forkserver._forkserver._forkserver_alive_fd  # type: ignore[attr-defined]
    if descriptor is not None:
        os.close(descriptor)
        forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]
