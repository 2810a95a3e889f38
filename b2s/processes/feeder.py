"""The feeder process: writes verified segments, in order, into the pipe to `btrfs receive`."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from b2s.adapters import pipe
from b2s.adapters.spool import Spool
from b2s.core.limits import PIPE_BYTES
from b2s.core.messages import FeedEnd, FeedSegment, SegmentFed, StreamFed
from b2s.errors import ReceiveFailed
from b2s.processes.child import ChildBoot, child_process, serve

WRITE_BYTES_MAX = PIPE_BYTES


def main(
    boot: ChildBoot,
    stream: Connection,
    spool_path: Path,
    slot_bytes: int,
    tasks: Queue[Any],
    replies: Connection,
) -> None:
    """Feed one stream; the writing end `stream` is ours to close.

    Only segments that the supervisor names are written, and it names only those whose hash matched.
    """
    with child_process(boot, replies):
        pipe.enlarge(stream.fileno())
        serve(tasks, replies, _Feed(stream, Spool.attach(spool_path, slot_bytes, writable=False)).do)


class _Feed:
    """One stream on its way into the pipe."""

    def __init__(self, stream: Connection, spool: Spool) -> None:
        self._stream = stream
        self._spool = spool
        self._fed_bytes = 0

    def do(self, task: object) -> SegmentFed | StreamFed:
        """Write a segment, or close the stream."""
        match task:
            case FeedEnd():
                self._stream.close()
                return StreamFed(self._fed_bytes)
            case FeedSegment(segment_number, slot, size):
                try:
                    write_all(self._stream.fileno(), self._spool.slot(slot)[:size])
                except BrokenPipeError as error:
                    raise ReceiveFailed(f"btrfs receive took no more after {self._fed_bytes} bytes") from error
                self._fed_bytes += size
                return SegmentFed(segment_number, slot)
        raise TypeError(f"the feeder cannot do {task!r}")


def write_all(descriptor: int, content: memoryview, write: Callable[[int, memoryview], int] = os.write) -> None:
    """Write everything, however little the pipe takes at once; blocks as long as its reader does not read."""
    position = 0
    while position < len(content):
        position += write(descriptor, content[position : position + WRITE_BYTES_MAX])
