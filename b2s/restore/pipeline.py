"""One stream on its way back: starts the processes, routes their messages, and ends them whatever happens.

    S3 -> downloader pool -> spool (verified) -> this loop, in order -> feeder -> pipe -> btrfs receive
              ^------------ free slots -------------|

`btrfs receive --dump` in the place of `btrfs receive` checks a stream and writes nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from b2s.adapters.btrfs_process import BtrfsProcess
from b2s.adapters.memory import spool_room_bytes
from b2s.adapters.spool import Spool
from b2s.core import events
from b2s.core.appetite import LOOK_SECONDS, Appetite
from b2s.core.fetch_board import FetchBoard, StoredSegment
from b2s.core.manifest import Manifest
from b2s.core.messages import FeedEnd, SegmentFed, SegmentFetched, StreamFed, TaskFailed, TaskRetried, WorkerReady
from b2s.core.progress import NoProgress, ProgressSink
from b2s.core.store_settings import S3Settings
from b2s.core.text import escaped
from b2s.core.units import format_bytes
from b2s.errors import B2sError, ReceiveFailed, SpoolFull, StreamRefused, WorkerFailed
from b2s.processes import downloader, feeder, forkserver
from b2s.processes.child import ChildBoot, process_context
from b2s.processes.pool import WorkerLost, WorkerPool, wait_any
from b2s.processes.signals import StopRequest

TICK_SECONDS = 0.5
RECEIVE_EXIT_SECONDS_MAX = 3600.0  # it flushes what it wrote before it ends; a slow disk may have gigabytes to go
RECEIVE_DYING_SECONDS_MAX = 10.0  # between the broken pipe and its exit status
RECEIVE_STOP_SECONDS = 2.0  # between TERM and KILL; there is nothing it could save
SAID_LENGTH_MAX = 200  # of what `btrfs receive` said last: names in it come from the stream
FREE_MEMORY_SHARE = 0.8  # of what is free now, how much the spool may take


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """With which means streams are fetched."""

    s3: S3Settings
    concurrency: int
    spool_parent: Path
    slot_bytes: int  # the longest segment of all streams that will be fetched
    segments: int  # of the longest stream
    round_trip_seconds: float = 0.0  # of the store's fastest answer; 0 where nobody asked

    @classmethod
    def of(
        cls,
        manifests: Sequence[Manifest],
        s3: S3Settings,
        concurrency: int,
        spool_parent: Path,
        round_trip_seconds: float = 0.0,
    ) -> DownloadPlan:
        """Return the plan for the streams of these backups, whatever their sizes."""
        longest = max(min(manifest.segment_size_bytes, manifest.chunks[0].bytes) for manifest in manifests)
        segments = max(sum(len(chunk.segment_sha256) for chunk in manifest.chunks) for manifest in manifests)
        return cls(s3, concurrency, spool_parent, longest, segments, round_trip_seconds)


@dataclass(frozen=True, slots=True)
class FedStream:
    """One stream that `btrfs receive` took whole and exited 0 on."""

    stream_bytes: int
    segments: int


@dataclass(slots=True)
class DownloadTotals:
    """What all streams together took."""

    downloaded_bytes: int = 0  # as they moved, those that were moved again included
    retries: int = 0
    peak_slots: int = 0


def spool_slots(plan: DownloadPlan, free_bytes: int) -> int:
    """Return how many slots the spool gets: `concurrency + 2`, fewer where memory is short or segments are few.

    The segment size comes from a manifest, and so from a stranger perhaps.

    Raises:
        SpoolFull: There is no room for two segments.
    """
    room = int(free_bytes * FREE_MEMORY_SHARE) // plan.slot_bytes
    if room < 2:
        raise SpoolFull(
            f"this backup has segments of {format_bytes(plan.slot_bytes)}, and {plan.spool_parent} has "
            f"{format_bytes(free_bytes)} free; a restore needs room for two",
            hint="restore on a host with more memory, or enlarge it: mount -o remount,size=80% /dev/shm",
        )
    return max(1, min(plan.concurrency + 2, room, plan.segments))


@dataclass(slots=True)
class StreamDownloads:
    """Spool and downloader processes for the streams of one command; a context manager, streams one by one.

    Attributes:
        on_child: Told pid and process name of every child started.
        progress: Told of bytes as they come down and as they are fed, and of retries.
        on_tick: Called at least twice a second; blocks the routing while it runs.
    """

    plan: DownloadPlan
    boot: ChildBoot
    owner: dict[str, object]  # of the spool directory
    stop: StopRequest
    log: Any
    on_child: Callable[[int, str], None]
    progress: ProgressSink = field(default_factory=NoProgress)
    totals: DownloadTotals = field(default_factory=DownloadTotals)
    allocated: set[int] = field(default_factory=set)  # slots that have their room
    on_tick: Callable[[], None] = lambda: None
    _slots: int = 0
    _spool: Spool | None = None
    _pool: WorkerPool | None = None
    _appetite: Appetite = field(default_factory=lambda: Appetite(1))

    def __enter__(self) -> Self:
        """Make the spool and start the downloaders.

        Raises:
            SpoolFull: There is no room for even two segments.
        """
        context = process_context()  # a fork, so before the spool: it would keep that locked on after us
        self._slots = spool_slots(self.plan, spool_room_bytes(self.plan.spool_parent))
        self._spool = Spool.create(self.plan.spool_parent, self.boot.run_id, self.plan.slot_bytes, self.owner)
        most = max(1, min(self.plan.concurrency, self._slots - 1))
        self._appetite = Appetite(most, self.plan.round_trip_seconds)
        boot = ChildBoot(self.boot.run_id, "downloader", self.boot.log)
        self._pool = WorkerPool(
            context,
            downloader.main,
            (boot, self.plan.s3, self._spool.path, self.plan.slot_bytes),
            size=self._appetite.workers,
            stall_seconds=self.plan.s3.stall_timeout.total_seconds(),
            on_started=lambda pid: self.on_child(pid, "downloader"),
            on_lost=self._downloader_lost,
            on_retry=self._call_retried,
            on_bytes=self._bytes_moved,
        )
        try:
            self._pool.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the downloaders and remove the spool."""
        if self._pool is not None:
            self._pool.stop()
        if self._spool is not None:
            self._spool.remove()

    def feed(
        self,
        segments: Iterator[StoredSegment],
        argv: list[str],
        *,
        inspect: Callable[[memoryview], object],
        stdout: int | None = None,
    ) -> FedStream:
        """Fetch one stream, verify it and feed it to a command; block until that has exited 0.

        Args:
            segments: In stream order.
            argv: The command that reads the stream from its stdin.
            inspect: Shown the first segment, verified, before any byte is fed; may raise.
            stdout: Where the command's stdout goes.

        Raises:
            ChunkDamaged: A segment has another hash than the manifest says; the command never saw it.
            ChunkMissing, ObjectArchived, StoreError: A segment cannot be had.
            SpoolFull: There is less room than there was a moment ago.
            ReceiveFailed: The command failed; its stderr is in the context.
            WorkerFailed: Downloaders die faster than they work, or the feeder died.
            Stopped: A signal asked for it.
        """
        pool, spool = self._pool, self._spool
        if pool is None or spool is None:
            raise RuntimeError("used outside of `with`")
        board = FetchBoard(segments, self._slots)
        context = process_context()
        tasks: Queue[Any] = context.Queue()
        replies, reply_writer = context.Pipe(duplex=False)
        stream_reader, stream_writer = context.Pipe(duplex=False)
        receive: BtrfsProcess | None = None
        feeding: BaseProcess | None = None
        try:
            with reply_writer, stream_reader, stream_writer:
                receive = BtrfsProcess.start(argv, stdin=stream_reader.fileno(), stdout=stdout)
                self.on_child(receive.pid, "btrfs")
                boot = ChildBoot(self.boot.run_id, "feeder", self.boot.log)
                feeding = context.Process(
                    target=feeder.main,
                    args=(boot, stream_writer, spool.path, self.plan.slot_bytes, tasks, reply_writer),
                    daemon=True,
                )
                forkserver.start(feeding)
                self.on_child(feeding.pid or 0, "feeder")
            fed_bytes = _Feeding(
                self, pool, spool, board, self._appetite, feeding, tasks, replies, receive, inspect
            ).run()
            self._await_exit(receive)
        except BaseException as error:
            self._wind_down(receive, error)
            raise
        finally:
            if feeding is not None:
                feeding.kill()
                feeding.join(5)
            replies.close()
            tasks.close()
            tasks.cancel_join_thread()
            self.totals.peak_slots = max(self.totals.peak_slots, board.allocated)
        return FedStream(fed_bytes, board.fed_segments)

    def _await_exit(self, receive: BtrfsProcess) -> None:
        deadline = time.monotonic() + RECEIVE_EXIT_SECONDS_MAX
        while (status := receive.wait(TICK_SECONDS)) is None:
            self.stop.check()
            if time.monotonic() > deadline:
                raise ReceiveFailed(f"btrfs receive (pid {receive.pid}) does not end after its stream did")
        if status != 0:
            raise receive_failed(receive)

    @staticmethod
    def _wind_down(receive: BtrfsProcess | None, error: BaseException) -> None:
        """End the command and wait for it; what it said joins the first error."""
        if receive is None:
            return
        receive.stop(RECEIVE_STOP_SECONDS)
        if isinstance(error, B2sError):
            error.context.setdefault("receive_stderr", receive.stderr_tail())

    def _bytes_moved(self, count: int) -> None:
        self.totals.downloaded_bytes += count
        self.progress.moved(count)

    def _downloader_lost(self, lost: WorkerLost) -> None:
        event = events.WORKER_STALLED if lost.stalled else events.DOWNLOADER_DIED
        self.log.warning(event, child_pid=lost.pid, exit_code=lost.exit_code, task_lost=lost.task_lost)

    def _call_retried(self, retry: TaskRetried) -> None:
        self.totals.retries += 1
        self.progress.retried()
        wait_seconds = round(retry.wait_seconds, 3)
        self.log.warning(
            events.PART_RETRIED, error=retry.error.message, attempt=retry.attempt, wait_seconds=wait_seconds
        )


@dataclass(slots=True)
class _Feeding:
    """The loop of one stream."""

    downloads: StreamDownloads
    pool: WorkerPool
    spool: Spool
    board: FetchBoard
    appetite: Appetite
    feeding: BaseProcess
    tasks: Queue[Any]
    replies: Connection
    receive: BtrfsProcess
    inspect: Callable[[memoryview], object]
    end_asked: bool = False
    ended_at: float | None = None  # monotonic seconds; when the command was found to have exited 0
    fed: StreamFed | None = None

    def run(self) -> int:
        """Route until the feeder has closed the pipe; return the bytes fed."""
        self._fetch()
        while self.fed is None:
            handles = [self.replies, self.feeding.sentinel, self.downloads.stop, *self.pool.wait_handles()]
            wait_any(handles, LOOK_SECONDS if self.appetite.grows else TICK_SECONDS)
            self.downloads.stop.check()
            self.downloads.on_tick()
            feeder_alive = self.feeding.is_alive()
            self._take_feeder_reports()
            if self.fed is None:
                self._check_receive(feeder_alive)
            self.pool.grow(self.appetite, held_up=self.board.starving, begun=self.board.fed_segments > 0)
            for report in self.pool.collect():
                self._take_fetched(report)
            self._fetch()
            if self.board.done and not self.end_asked:
                self.end_asked = True
                self.tasks.put(FeedEnd())
        return self.fed.stream_bytes

    def _fetch(self) -> None:
        for task in self.board.fetches():
            if task.slot not in self.downloads.allocated:  # once: a file that vanished must not be made anew
                self.spool.allocate(task.slot)
                self.downloads.allocated.add(task.slot)
            self.pool.submit(task)
        self.downloads.progress.spooled(self.board.in_use, self.board.slots)

    def _take_fetched(self, report: SegmentFetched) -> None:
        if report.segment_number == 0:
            self.inspect(self.spool.slot(report.slot)[: self.board.bytes_of(0)])
        for task in self.board.fetched(report):
            self.tasks.put(task)

    def _take_feeder_reports(self) -> None:
        try:
            while self.replies.poll():
                match self.replies.recv():
                    case SegmentFed() as report:
                        self.downloads.progress.stored(self.board.fed(report), reused=False)
                    case StreamFed() as report:
                        self.fed = report
                    case TaskFailed(error=error):
                        failure = error.to_error()
                        raise receive_failed(self.receive) if isinstance(failure, ReceiveFailed) else failure
                    case WorkerReady():
                        pass
        except (EOFError, ConnectionError):
            return  # it died; seen next

    def _check_receive(self, feeder_alive: bool) -> None:
        # The feeder first: without it, receive fails for want of a whole stream.
        if not feeder_alive:
            raise WorkerFailed(
                f"the feeder process died with exit code {self.feeding.exitcode}",
                hint="run the same command again; what was received whole is reused",
            )
        # Exit 0 may come before the feeder has closed the pipe: `--dump` ends at the END command. If it came with
        # bytes still to write, the feeder meets a broken pipe; or, where somebody else has the other end, nothing.
        status = self.receive.poll()
        if status == 0 and self.ended_at is None:
            self.ended_at = time.monotonic()
        if status or (self.ended_at is not None and time.monotonic() - self.ended_at > RECEIVE_DYING_SECONDS_MAX):
            raise receive_failed(self.receive)


def receive_failed(receive: BtrfsProcess) -> ReceiveFailed:
    """Build the error for a `btrfs receive` that ended, or is about to, before or with its stream."""
    status = receive.wait(RECEIVE_DYING_SECONDS_MAX)
    stderr = receive.stderr_tail()
    how = "exit status 0 before the end of its stream" if status == 0 else receive.describe_exit()
    said = stderr.splitlines()[-1].removeprefix("ERROR: ")[:SAID_LENGTH_MAX] if stderr else ""
    message = f"btrfs receive failed: {how}" + (f": {escaped(said)}" if said else "")
    if status == 0 or (status == 1 and _STREAM_SIGNS.search(stderr)):
        return StreamRefused(message, receive_stderr=stderr)
    return ReceiveFailed(message, hint=_cure(stderr), receive_stderr=stderr)


# What no host can be the reason of where every byte is what was sent: names that lead elsewhere or nowhere, commands
# that make no sense. Source: btrfs-progs 6.2, cmds/receive.c and common/send-stream.c, tried with made-up streams.
_STREAM_SIGNS = re.compile(
    r"No such file or directory|File exists|Not a directory|Is a directory|File name too long|path invalid"
    r"|creating subvolume .* failed: Invalid argument"
    r"|crc32 mismatch|unexpected (EOF|header)|short read from stream|requested but not present"
)


def _cure(stderr: str) -> str | None:
    cures = {
        "No space left": "the target filesystem is full; free space and run the same command again",
        "Disk quota exceeded": "a quota of the target filesystem is reached; raise it and run the same command again",
        "Read-only file system": "the target filesystem is read-only, perhaps after an error; see the kernel log",
        "not reachable from inside the root subvol": (
            "another copy of the send parent lies on this filesystem outside of this mount; mount its top level "
            "(-o subvolid=5) and restore below that"
        ),
        "please use newer version": "install a newer btrfs-progs; it was sent with a protocol this one does not know",
        "cannot find parent subvolume": "the send parent was deleted meanwhile; run the same command again",
    }
    return next((cure for sign, cure in cures.items() if sign in stderr), None)
