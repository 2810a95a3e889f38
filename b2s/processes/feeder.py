"""The feeder process: hands verified segments, in order, to the pipe of `btrfs receive`.

`splice` puts the spool's own pages into the pipe: nothing is copied until `btrfs receive` reads. So a slot is in use
until its last byte was read, not only until it was handed over; the kernel says how much of the pipe is unread.
"""

from __future__ import annotations

import os
import time
from collections import deque
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any

from b2s.adapters import pipe
from b2s.adapters.spool import Spool
from b2s.core.limits import MIB
from b2s.core.messages import FeedEnd, FeedSegment, SegmentFed, StreamFed, WorkerReady
from b2s.errors import ReceiveFailed, SpoolDamaged
from b2s.processes.child import ChildBoot, child_process

# What is handed over at once; between two of these, slots that were read are given back.
SPLICE_BYTES = 4 * MIB
# As long as a core may be busy elsewhere without `btrfs receive` running dry. The pages are the spool's anyway.
PIPE_BYTES = 8 * MIB
UNREAD_POLL_SECONDS = 0.005
READ_BYTES_PER_SECOND_MAX = 1e9  # twice what `btrfs receive` was ever seen to do
IDLE_SECONDS = 5.0  # the kernel ends us when the supervisor is gone


def main(
    boot: ChildBoot,
    stream: Connection,
    spool_path: Path,
    slot_bytes: int,
    tasks: Queue[Any],
    replies: Connection,
) -> None:
    """Feed one stream; the writing end `stream` is ours to close.

    Only segments that the supervisor names are handed over, and it names only those whose hash matched.
    """
    with child_process(boot, replies):
        pipe.enlarge(stream.fileno(), PIPE_BYTES)
        Feed(stream, Spool.attach(spool_path, slot_bytes, writable=False), replies).run(tasks)


class Feed:
    """One stream on its way into the pipe."""

    def __init__(self, stream: Connection, spool: Spool, replies: Connection) -> None:
        self._stream = stream
        self._spool = spool
        self._replies = replies
        self._fed_bytes = 0
        self._unread: deque[tuple[int, SegmentFed]] = deque()  # with where each ends in the stream

    def run(self, tasks: Queue[Any]) -> None:
        """Do what the supervisor says until the end of the stream.

        Raises:
            ReceiveFailed: Nobody reads any more, and not everything was read.
            SpoolDamaged: Somebody removed or shortened a slot.
        """
        self._replies.send(WorkerReady())
        while True:
            try:
                task = tasks.get(timeout=UNREAD_POLL_SECONDS if self._unread else IDLE_SECONDS)
            except Empty:
                self.give_back()
                continue
            match task:
                case FeedSegment():
                    self.hand_over(task)
                case FeedEnd():  # the supervisor says so when it has every slot back
                    self._stream.close()
                    self._replies.send(StreamFed(self._fed_bytes))
                    return
                case _:
                    raise TypeError(f"the feeder cannot do {task!r}")

    def hand_over(self, segment: FeedSegment) -> None:
        """Put a segment into the pipe; blocks as long as its reader does not read."""
        self._unread.append((self._fed_bytes + segment.bytes, SegmentFed(segment.segment_number, segment.slot)))
        descriptor, offset = self._spool.descriptor(segment.slot), 0
        while offset < segment.bytes:
            try:
                count = os.splice(
                    descriptor, self._stream.fileno(), min(SPLICE_BYTES, segment.bytes - offset), offset_src=offset
                )
            except BrokenPipeError as error:
                raise self._refused() from error
            if count == 0:
                raise SpoolDamaged(f"slot {segment.slot} of {self._spool.path} ends at byte {offset}")
            offset += count
            self._fed_bytes += count
            # Woken for every page that was read we would cost as much as copying: half of the pipe has time.
            time.sleep(self.give_back() / 2 / READ_BYTES_PER_SECOND_MAX)

    def give_back(self) -> int:
        """Report the segments that were read to their last byte; return how many bytes are unread."""
        is_gone = pipe.reader_is_gone(self._stream.fileno())  # first: after that nothing more is read
        unread_bytes = pipe.unread_bytes(self._stream.fileno())
        read_bytes = self._fed_bytes - unread_bytes
        while self._unread and self._unread[0][0] <= read_bytes:
            self._replies.send(self._unread.popleft()[1])
        if self._unread and is_gone:
            raise self._refused()
        return unread_bytes

    def _refused(self) -> ReceiveFailed:
        return ReceiveFailed(f"btrfs receive took no more of the {self._fed_bytes} bytes it was given")
