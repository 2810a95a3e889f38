"""A pool of worker processes that survives the death of any of them.

Every worker has a queue and a reply pipe of its own: a process killed while it reads a shared queue holds its lock
for ever and would hang the others. A worker has one task at a time. When it dies, or moves no byte for too long,
its task goes to the front of the line and a new process takes its place; so it does when one never gets ready.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any

from b2s.adapters import children
from b2s.core.appetite import Appetite
from b2s.core.messages import BytesMoved, Stop, TaskFailed, TaskRetried, WorkerReady
from b2s.errors import WorkerFailed
from b2s.processes import forkserver

# A hundred kills from outside (an operator, the OOM killer on a bad day) are ridden out, wherever they hit: all on
# the task of the one slow segment, or all on workers that have not begun yet. A crash loop still ends.
DEATHS_PER_TASK_MAX = 200
STALL_WEIGHT = 10  # deaths: each costs a whole `stall_timeout`
OWN_EXIT_WEIGHT = 40  # deaths: nobody killed it, so the next one will end there too
FAILED_STARTS_MAX = 5  # in a row, by their own exit or never ready: they will not get better
START_SECONDS_MIN = 30.0  # that a start may take however soon a task stalls: it may ask for credentials
DEATHS_IN_A_ROW_MAX = 400  # by any cause, without one task done in between
KILLED_SECONDS_MAX = 2.0  # a killed process that is still there then waits in the kernel


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    tasks: Queue[Any]
    replies: Connection
    last_sign: float  # monotonic seconds
    ready: bool = False
    task: _Task | None = None


@dataclass(slots=True)
class _Task:
    message: Any
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker that died or was ended because it stalled; for the log."""

    pid: int
    exit_code: int | None
    stalled: bool
    task_lost: bool


@dataclass(slots=True)
class WorkerPool:
    """Up to `size` processes running ``main(*args, tasks, replies)``, no more than there ever were tasks at once.

    `size` may be raised at any time (`grow` does); the next `collect` starts what is missing.

    `main` must report `WorkerReady`, then exactly one message that is not a sign of life per task.

    Attributes:
        on_started: Told pid of every process started.
        on_lost: Told of every process lost.
        on_retry: Told of every call that a worker tries again.
        on_bytes: Told of bytes moved, as they move.
    """

    context: ForkServerContext
    main: Callable[..., None]
    args: tuple[Any, ...]
    size: int
    stall_seconds: float
    on_started: Callable[[int], None]
    on_lost: Callable[[WorkerLost], None]
    on_retry: Callable[[TaskRetried], None]
    on_bytes: Callable[[int], None] = lambda count: None
    monotonic: Callable[[], float] = time.monotonic
    _workers: list[_Worker] = field(default_factory=list)
    _waiting: deque[_Task] = field(default_factory=deque)
    _reports: list[Any] = field(default_factory=list)  # read and not handed out yet
    _closing: bool = False
    _dismissed: bool = False
    _failed_starts: int = 0
    _deaths_in_a_row: int = 0

    def start(self) -> None:
        """Start the first process; others follow when there are tasks for them."""
        self._workers.append(self._start_worker())

    def submit(self, message: Any) -> None:
        """Queue a task; the next idle worker gets it."""
        self._waiting.append(_Task(message))
        self._dispatch()

    @property
    def overloaded(self) -> bool:
        """Tell whether tasks wait that no worker is coming for."""
        coming = sum(not worker.ready for worker in self._workers)
        return len(self._waiting) > coming and len(self._workers) >= self.size

    def grow(self, appetite: Appetite, *, held_up: bool, begun: bool) -> None:
        """Have as many workers as the stream is worth now; the arguments are those of `Appetite.look`."""
        if appetite.grows:
            pids = [worker.process.pid or 0 for worker in self._workers]
            self.size = appetite.look(self.monotonic(), held_up=held_up, begun=begun, cpu=children.cpu_use(pids))

    @property
    def busy(self) -> bool:
        """Tell whether any task is waiting or under way."""
        return bool(self._waiting) or any(worker.task for worker in self._workers)

    def begin_nothing_new(self) -> None:
        """Forget the tasks that no worker has begun, and replace no worker any more."""
        self._closing = True
        self._waiting.clear()

    def wait_handles(self) -> list[Connection | int]:
        """Return what to wait on (`multiprocessing.connection.wait`) until `collect` has something to do."""
        handles: list[Connection | int] = []
        for worker in self._workers:
            handles += [worker.replies, worker.process.sentinel]
        return handles

    def collect(self) -> list[Any]:
        """Take in what the workers reported, replace the dead and the stalled, hand out tasks; never blocks.

        Raises:
            WorkerFailed: A task killed its worker too often, or new workers die before they are ready.
            B2sError: A worker reported that its task cannot be done. What others reported comes with the next call.
        """
        for worker in list(self._workers):
            self._read(worker)
            stalled = self._is_stalled(worker)
            if stalled:
                worker.process.kill()
            if stalled or not worker.process.is_alive():
                worker.process.join(KILLED_SECONDS_MAX)
                self._read(worker)
                self._replace(worker, stalled=stalled)
        self._dispatch()
        reports, self._reports = self._reports, []
        return reports

    def dismiss(self) -> None:
        """Tell all processes to end as soon as they are idle; `stop` is still to be called."""
        if not self._dismissed:
            for worker in self._workers:
                worker.tasks.put(Stop())
        self._dismissed = True

    def stop(self, grace_seconds: float = 0.0) -> None:
        """End all processes: those idle within the grace exit by themselves, the others are killed."""
        self.dismiss()
        deadline = self.monotonic() + grace_seconds
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - self.monotonic()))
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.kill()
        deadline = self.monotonic() + KILLED_SECONDS_MAX
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - self.monotonic()))
            self._close(worker)
        self._workers.clear()
        self._waiting.clear()

    def _is_stalled(self, worker: _Worker) -> bool:
        silent_seconds = self.monotonic() - worker.last_sign
        if not worker.ready:
            return silent_seconds > max(self.stall_seconds, START_SECONDS_MIN)
        return worker.task is not None and silent_seconds > self.stall_seconds

    def _read(self, worker: _Worker) -> None:
        try:
            while worker.replies.poll():
                message = worker.replies.recv()
                worker.last_sign = self.monotonic()
                match message:
                    case WorkerReady():
                        worker.ready = True
                        self._failed_starts = 0
                    case BytesMoved(bytes=count):
                        self.on_bytes(count)
                    case TaskRetried():
                        self.on_retry(message)
                    case TaskFailed(error=error):
                        worker.task = None
                        raise error.to_error()
                    case _:
                        worker.task = None
                        self._deaths_in_a_row = 0
                        self._reports.append(message)
        except (EOFError, ConnectionError):
            return  # it died; the caller sees that next

    def _replace(self, worker: _Worker, *, stalled: bool) -> None:
        exit_code, task = worker.process.exitcode, worker.task
        self.on_lost(WorkerLost(worker.process.pid or 0, exit_code, stalled, task is not None))
        self._close(worker)
        self._workers.remove(worker)
        if self._closing:
            return
        self._deaths_in_a_row += 1
        if not worker.ready and (stalled or (exit_code is not None and exit_code >= 0)):
            self._failed_starts += 1
        if task is not None:
            task.deaths += STALL_WEIGHT if stalled else OWN_EXIT_WEIGHT if (exit_code or 0) > 0 else 1
            self._waiting.appendleft(task)
        if self._failed_starts >= FAILED_STARTS_MAX and stalled:
            raise WorkerFailed(
                "worker processes do not get ready for any work",
                hint="look whether what provides the credentials answers; run the same command again to go on",
            )
        if self._failed_starts >= FAILED_STARTS_MAX or self._deaths_in_a_row >= DEATHS_IN_A_ROW_MAX:
            raise WorkerFailed(
                f"worker processes die before they do any work, the last with exit code {exit_code}",
                hint="look for memory limits; run the same command again to go on",
            )
        if task is not None and task.deaths >= DEATHS_PER_TASK_MAX:
            raise WorkerFailed(
                f"worker processes died again and again on the same task, the last with exit code {exit_code}",
                hint="look for memory limits and failing disks; run the same command again to go on",
            )
        self._workers.append(self._start_worker())

    def _dispatch(self) -> None:
        for worker in self._workers:
            if not self._waiting:
                return
            if worker.ready and worker.task is None:
                worker.task = self._waiting.popleft()
                worker.last_sign = self.monotonic()
                worker.tasks.put(worker.task.message)
        coming = sum(not worker.ready for worker in self._workers)
        while coming < len(self._waiting) and len(self._workers) < self.size:
            self._workers.append(self._start_worker())
            coming += 1

    def _start_worker(self) -> _Worker:
        tasks: Queue[Any] = self.context.Queue()
        reader, writer = self.context.Pipe(duplex=False)
        process = self.context.Process(target=self.main, args=(*self.args, tasks, writer), daemon=True)
        forkserver.start(process)
        writer.close()
        self.on_started(process.pid or 0)
        return _Worker(process, tasks, reader, self.monotonic())

    @staticmethod
    def _close(worker: _Worker) -> None:
        worker.replies.close()
        worker.tasks.close()
        worker.tasks.cancel_join_thread()


def wait_any(handles: Sequence[Any], timeout_seconds: float) -> None:
    """Wait until one of the handles has something to say, or the time is over."""
    from multiprocessing.connection import wait

    wait(handles, timeout_seconds)
