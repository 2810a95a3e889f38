"""One stream on its way to S3: starts the processes, routes their messages, and ends them whatever happens.

btrfs send -> pipe -> chunker -> spool + queue -> this loop -> a queue per uploader -> S3
                          ^---------- free slots ---|  ^------- receipts -------|
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any, Protocol

from b2s.adapters import children
from b2s.adapters.btrfs_process import BtrfsProcess, describe_exit
from b2s.adapters.spool import Spool
from b2s.backup import sending
from b2s.core import events
from b2s.core.appetite import LOOK_SECONDS, Appetite
from b2s.core.board import FinishedChunk, UploadBoard
from b2s.core.leisure import Leisure
from b2s.core.messages import (
    ChunkOpened,
    ChunkStored,
    SegmentDiffers,
    SegmentSpooled,
    SegmentStored,
    SlotFree,
    SlotUnusable,
    StreamEnded,
    TaskRetried,
)
from b2s.core.model import Receipt, StoreFacts
from b2s.core.progress import NoProgress, ProgressSink
from b2s.core.sizing import Sizes, SpoolPlan
from b2s.core.slots import SlotLender
from b2s.core.store_settings import S3Settings
from b2s.core.stream_opening import OPENING_BYTES_MAX
from b2s.core.units import format_duration
from b2s.errors import (
    B2sError,
    SendFailed,
    SpoolFull,
    StateError,
    Stopped,
    StreamChanged,
    WorkerFailed,
)
from b2s.processes import chunker, forkserver, uploader
from b2s.processes.child import ChildBoot, process_context
from b2s.processes.pool import WorkerLost, WorkerPool, wait_any
from b2s.processes.signals import StopRequest

STOP_GRACE_SECONDS = 4.0  # for parts under way when the run is asked to stop
TICK_SECONDS = 0.5


class UploadObserver(Protocol):
    """Who wants to know how the upload goes: the journal, the log, the progress line."""

    def chunk_opened(self, chunk_index: int, key: str, upload_id: str) -> None:
        """Note that a chunk's multipart upload exists."""

    def part_stored(self, chunk_index: int, receipt: Receipt, *, reused: bool) -> None:
        """Note that S3 has a part."""

    def chunk_stored(self, report: ChunkStored) -> None:
        """Note that a chunk is a confirmed object."""

    def bytes_moved(self, count: int) -> None:
        """Note bytes on their way up."""


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What is to be uploaded and with which means."""

    send_argv: list[str]
    sizes: Sizes
    spool: SpoolPlan
    spool_parent: Path
    s3: S3Settings
    store_facts: StoreFacts
    worker_main: Callable[..., None] = uploader.main  # the measurer takes its place under --no-s3


@dataclass(frozen=True, slots=True)
class UploadResult:
    """A whole stream, stored and confirmed."""

    chunks: tuple[FinishedChunk, ...]
    stream_bytes: int
    segments: int
    uploaded_bytes: int
    reused_bytes: int
    retries: int
    peak_spool_bytes: int
    elapsed_seconds: float


@dataclass(slots=True)
class StreamUpload:
    """The supervisor of one stream. Entering `stored` blocks until everything is stored or something failed."""

    plan: StreamPlan
    board: UploadBoard
    observer: UploadObserver
    boot: ChildBoot
    owner: dict[str, object]  # of the spool directory
    stop: StopRequest
    log: Any
    on_child: Callable[[int, str], None]  # pid and process name of every child started
    progress: ProgressSink = field(default_factory=NoProgress)
    inspect: Callable[[bytes], None] = lambda beginning: None  # shown the first command before it is sent; may raise
    retries: int = 0
    _stream_ended: StreamEnded | None = None
    _segments: int = 0
    _filling_since: float = field(default_factory=time.monotonic)  # monotonic seconds
    _activity: tuple[tuple[int, int, float], ...] = ()  # of those who fill, when last looked at
    _appetite: Appetite = field(init=False)
    _lender: SlotLender = field(init=False)
    _spool: Spool = field(init=False)
    _send: BtrfsProcess | None = None
    _cutting: BaseProcess | None = None

    def __post_init__(self) -> None:
        """Lend no more slots than the budget holds."""
        self._lender = SlotLender(self.plan.spool.slots)
        self._appetite = Appetite(self.plan.spool.effective_concurrency, self.plan.store_facts.round_trip_seconds)

    @contextmanager
    def stored(self) -> Iterator[UploadResult]:
        """Upload the stream; what started for it ends while the result is put to use, and has ended afterwards.

        Yields:
            The stored chunks, in order, once S3 confirmed all of them and `btrfs send` exited 0 after END.

        Raises:
            SendFailed: `btrfs send` failed or its stream is not whole; stderr is in the context.
            StreamChanged: A chunk that an earlier run completed would be different now.
            SpoolFull: Not even one segment fits into the spool.
            WorkerFailed: The chunker died, stream or chunker stand still, or uploaders die faster than they work.
            StoreError: S3 refused for good, or for longer than `retry_for`.
            Stopped: A signal asked for it; parts under way were given a moment.
        """
        started = time.monotonic()
        context = process_context()
        self._spool = Spool.create(
            self.plan.spool_parent, self.boot.run_id, self.plan.sizes.segment_size_bytes, self.owner
        )
        pool = self._pool(context)
        free_slots: Queue[Any] = context.Queue()
        announcements: Queue[Any] = context.Queue()
        try:
            try:
                send, cutting = self._start_cutting(context, free_slots, announcements)
                self._lend(free_slots)
                with self.stop.interrupting():
                    pool.start()
                self._submit(pool, self.board.begin())
                self._route(pool, send, cutting, free_slots, announcements)
            except BaseException as error:
                self._wind_down(pool, error)
                raise
            pool.dismiss()
            self._spool.remove_slots()
            yield self._result(started)
            with suppress(Stopped):  # by a second signal: what was made of the result stands, and no grace is left
                pool.stop(grace_seconds=2.0)
        finally:
            try:
                pool.stop()
            finally:
                if self._cutting is not None:
                    self._cutting.kill()
                    self._cutting.join(5)
                for queue in (free_slots, announcements):
                    queue.close()
                    queue.cancel_join_thread()
                self._spool.remove()

    def _start_cutting(
        self, context: Any, free_slots: Queue[Any], announcements: Queue[Any]
    ) -> tuple[BtrfsProcess, BaseProcess]:
        """Start `btrfs send`, and the chunker that reads its stream."""
        reader, writer = context.Pipe(duplex=False)
        with reader, writer:
            self._send = send = BtrfsProcess.start(self.plan.send_argv, stdout=writer.fileno())
            self.on_child(send.pid, "btrfs")
            boot = ChildBoot(self.boot.run_id, "chunker", self.boot.log)
            leisure = Leisure(self.plan.store_facts.sha256, self.board.known_segments(self.plan.sizes))
            arguments = (boot, reader, self._spool.path, self.plan.sizes, leisure, free_slots, announcements)
            with self.stop.interrupting():  # the first process waits for the fork server and all it imports
                self._cutting = cutting = _started(context.Process(target=chunker.main, args=arguments, daemon=True))
            self.on_child(cutting.pid or 0, "chunker")
        return send, cutting

    def _result(self, started: float) -> UploadResult:
        assert self._stream_ended is not None
        return UploadResult(
            chunks=self.board.finished_chunks(),
            stream_bytes=self._stream_ended.stream_bytes,
            segments=self._segments,
            uploaded_bytes=self.board.uploaded_bytes,
            reused_bytes=self.board.reused_bytes,
            retries=self.retries,
            peak_spool_bytes=self._lender.allocated * self.plan.sizes.segment_size_bytes,
            elapsed_seconds=time.monotonic() - started,
        )

    def _pool(self, context: Any) -> WorkerPool:
        boot = ChildBoot(self.boot.run_id, "uploader", self.boot.log)
        return WorkerPool(
            context,
            self.plan.worker_main,
            (boot, self.plan.s3, self.plan.store_facts, self._spool.path, self._spool.slot_bytes),
            size=self._appetite.workers,
            stall_seconds=self.plan.s3.stall_timeout.total_seconds(),
            on_started=lambda pid: self.on_child(pid, "uploader"),
            on_lost=self._uploader_lost,
            on_retry=self._call_retried,
            on_bytes=self.observer.bytes_moved,
        )

    def _route(
        self, pool: WorkerPool, send: BtrfsProcess, cutting: BaseProcess, free_slots: Queue[Any], announced: Queue[Any]
    ) -> None:
        while not self.board.done:
            handles = [announced._reader, cutting.sentinel, self.stop, *pool.wait_handles()]  # type: ignore[attr-defined]
            if self._stream_ended is not None:
                handles.remove(cutting.sentinel)
            wait_any(handles, LOOK_SECONDS if self._appetite.grows else TICK_SECONDS)
            self.stop.check()
            chunker_gone = not cutting.is_alive()
            for message in _drain(announced):
                self._take_announcement(message, pool, send)
            self._lend(free_slots)
            if chunker_gone and self._stream_ended is None:
                raise WorkerFailed(
                    f"the chunker process ended before the stream did: {describe_exit(cutting.exitcode)}",
                    hint="run the same command again; it goes on where it stopped",
                )
            if self._stands_still(send, cutting):
                raise WorkerFailed(
                    f"no segment came for {format_duration(self.plan.s3.stall_timeout)}, and neither btrfs send "
                    f"(pid {send.pid}) nor the chunker (pid {cutting.pid}) does anything",
                    hint="look whether one of them is stopped, and at the kernel log for the disk; "
                    "run the same command again, it goes on where it stopped",
                )
            pool.grow(self._appetite, held_up=pool.overloaded, begun=True)
            for report in pool.collect():
                self._take_report(report, pool)
            self._lend(free_slots)

    def _stands_still(self, send: BtrfsProcess, cutting: BaseProcess) -> bool:
        """Tell whether nothing moves though there is room for it.

        `btrfs send` may be silent for hours where much was not changed, but it is never idle then.
        """
        now = time.monotonic()
        if self._stream_ended is not None or not self._lender.lent:
            self._filling_since = now
        if now - self._filling_since < self.plan.s3.stall_timeout.total_seconds():
            return False
        activity = children.activity((send.pid, cutting.pid or 0))
        still, self._activity, self._filling_since = activity == self._activity, activity, now
        return still

    def _lend(self, free_slots: Queue[Any]) -> None:
        for slot in self._lender.lend():
            free_slots.put(SlotFree(slot))
        self.progress.spooled(self._lender.in_use, self._lender.slots)

    def _take_announcement(self, message: Any, pool: WorkerPool, send: BtrfsProcess) -> None:
        match message:
            case SegmentSpooled():
                self._segments += 1
                self._filling_since = time.monotonic()
                if self._segments == 1:
                    self.inspect(self._spool.beginning(message.slot, min(message.bytes, OPENING_BYTES_MAX)))
                if self._segments * self.plan.sizes.segment_size_bytes > self.plan.sizes.stream_bytes_max:
                    raise SendFailed(
                        f"the stream is longer than {self.plan.sizes.stream_bytes_max} bytes, the most that one "
                        "manifest describes with these sizes",
                        hint="raise s3.segment_size and s3.chunk_size, then run with --fresh",
                    )
                self._lender.filled(message.slot)
                self._submit(pool, self.board.segment_spooled(message))
            case SlotUnusable():
                self._lender.refused(message.slot)
                if self._lender.exhausted:
                    raise SpoolFull(message.detail, hint="free space there, or lower s3.segment_size")
            case StreamEnded():
                self._stream_ended = message
                sending.judge(send, message, self.stop.check)
                self._submit(pool, self.board.confirm_stream())

    def _take_report(self, report: Any, pool: WorkerPool) -> None:
        self._note(report)
        match report:
            case ChunkOpened():
                self._submit(pool, self.board.chunk_opened(report))
            case SegmentStored():
                slot, tasks = self.board.segment_stored(report)
                self._lender.freed(slot)
                self._submit(pool, tasks)
            case ChunkStored():
                self.board.chunk_stored(report)
            case SegmentDiffers():
                raise StreamChanged(
                    f"btrfs send makes another stream than before: segment {report.segment_index} of the stored "
                    f"chunk {report.chunk_index} differs"
                )

    def _note(self, report: Any) -> None:
        """Tell the observer what S3 has now."""
        match report:
            case ChunkOpened():
                key = self.board.key_of(report.chunk_index)
                self.observer.chunk_opened(report.chunk_index, key, report.upload_id)
            case SegmentStored():
                self.observer.part_stored(report.chunk_index, report.receipt, reused=report.reused)
            case ChunkStored():
                self.observer.chunk_stored(report)

    @staticmethod
    def _submit(pool: WorkerPool, tasks: list[Any]) -> None:
        for task in tasks:
            pool.submit(task)

    def _wind_down(self, pool: WorkerPool, error: BaseException) -> None:
        """End the processes; what `btrfs send` said joins the first error, parts under way get a moment."""
        deadline = time.monotonic() + STOP_GRACE_SECONDS
        try:
            pool.begin_nothing_new()
            if self._send is not None:
                sending.end(self._send, error, self.log)
            if isinstance(error, B2sError):
                self._let_finish(pool, error, deadline)
        finally:
            pool.stop()
            if isinstance(error, Stopped):
                forkserver.end()  # perhaps the signal broke off a start: nobody else knows that process

    def _let_finish(self, pool: WorkerPool, error: B2sError, deadline: float) -> None:
        """Give the parts under way a moment, and tell the observer of those that are stored."""
        while True:
            try:
                for report in pool.collect():
                    self._note(report)
            except (Stopped, StateError):
                return  # a second signal, or nowhere to write it down
            except B2sError as later:
                error.add_note(f"while winding down: {later.message}")  # the first error is the one to report
            else:
                if not pool.busy or time.monotonic() >= deadline:
                    return
                wait_any(pool.wait_handles(), 0.2)

    def _uploader_lost(self, lost: WorkerLost) -> None:
        event = events.WORKER_STALLED if lost.stalled else events.UPLOADER_DIED
        self.log.warning(event, child_pid=lost.pid, exit_code=lost.exit_code, task_lost=lost.task_lost)

    def _call_retried(self, retry: TaskRetried) -> None:
        self.retries += 1
        self.progress.retried()
        self.log.warning(
            events.PART_RETRIED,
            error=retry.error.message,
            attempt=retry.attempt,
            wait_seconds=round(retry.wait_seconds, 3),
        )


def _started(process: BaseProcess) -> BaseProcess:
    forkserver.start(process)
    return process


def _drain(queue: Queue[Any]) -> list[Any]:
    messages = []
    while True:
        try:
            messages.append(queue.get_nowait())
        except Empty:
            return messages
