"""The chunker process: reads the stream from `btrfs send`, cuts it into segments, spools and announces them."""

from __future__ import annotations

import hashlib
import os
import select
import time
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any

from b2s.adapters import pipe
from b2s.adapters.spool import Spool
from b2s.core.leisure import Leisure
from b2s.core.messages import SegmentSpooled, SlotFree, SlotUnusable, Stop, StreamEnded
from b2s.core.model import Sha256
from b2s.core.sizing import Sizes
from b2s.core.stream import StreamFrames
from b2s.errors import SpoolFull
from b2s.processes.child import ChildBoot, child_process

CLOSE_SECONDS_MAX = 30.0  # between END and the end of the pipe


def main(
    boot: ChildBoot,
    stream: Connection,
    spool_path: Path,
    sizes: Sizes,
    leisure: Leisure,
    free_slots: Queue[Any],
    announcements: Queue[Any],
) -> None:
    """Run until the stream ends; the reading end `stream` is ours to close."""
    with child_process(boot):
        spool = Spool.attach(spool_path, sizes.segment_size_bytes, writable=True)
        slots = _Slots(spool, free_slots, announcements)
        frames = StreamFrames()
        if not _cut(stream.fileno(), sizes, spool, slots, leisure, frames):
            return
        stream.close()
        verdict = frames.finish()
        announcements.put(StreamEnded(verdict.stream_bytes, verdict.whole, verdict.detail, bool(frames.fault)))


def _cut(descriptor: int, sizes: Sizes, spool: Spool, slots: _Slots, leisure: Leisure, frames: StreamFrames) -> bool:
    """Spool and announce every segment of the stream; False when told to stop before its end."""
    pipe.enlarge(descriptor)
    segment_number = 0
    while not frames.ended:
        slot = slots.next()
        if slot is None:
            return False
        segment = spool.slot(slot)
        early = leisure.for_hashing(segment_number, in_flight=slots.in_flight)
        digest = hashlib.sha256() if early else None
        began, had = time.monotonic(), time.thread_time()
        filled = _fill(descriptor, segment, frames, digest)
        if early:
            leisure.hashed(time.monotonic() - began, time.thread_time() - had)
        if frames.ended:
            _await_close(descriptor, frames)
        if frames.fault or (not frames.ended and filled < len(segment)):
            break  # a short segment is only announced when END was seen
        place = sizes.place(segment_number)
        last_in_chunk = place.fills_chunk or frames.ended
        if digest is None and not slots.any:  # its uploader need not keep the line waiting for that
            digest = hashlib.sha256(segment[:filled])
        sha256 = Sha256(digest.digest()) if digest is not None else None
        slots.announce(SegmentSpooled(place.chunk_index, place.segment_index, slot, filled, last_in_chunk, sha256))
        segment_number += 1
    return True


class _Slots:
    """The spool slots that may be filled now: what the supervisor lent."""

    def __init__(self, spool: Spool, free_slots: Queue[Any], announcements: Queue[Any]) -> None:
        self._spool = spool
        self._free_slots = free_slots
        self._announcements = announcements
        self._lent: list[int] = []
        self._filled: set[int] = set()
        self._told_to_stop = False

    @property
    def any(self) -> bool:
        """Tell whether there is one to go on with."""
        self._listen(wait=False)
        return bool(self._lent)

    @property
    def in_flight(self) -> int:
        """Return how many are at the uploaders."""
        return len(self._filled)

    def next(self) -> int | None:
        """Wait for one with room in it, best one that has it already; None when told to stop.

        One that is used for the first time costs 30 ms of CPU, for zeros, mappings and giving it all back. Of the
        others the one freed last is the best: a cache or the page cache may still have it, and on a disk the rest of
        a large spool is not written again and again.
        """
        while True:
            self._listen(wait=not self._lent)
            if self._told_to_stop:
                return None
            used_before = [slot for slot in reversed(self._lent) if self._spool.is_mapped(slot)]
            for slot in used_before or list(self._lent):
                self._lent.remove(slot)
                try:
                    self._spool.allocate(slot)
                except SpoolFull as error:
                    self._announcements.put(SlotUnusable(slot, error.message))
                    continue
                return slot

    def announce(self, segment: SegmentSpooled) -> None:
        """Tell the supervisor of a slot that was filled."""
        self._filled.add(segment.slot)
        self._announcements.put(segment)

    def _listen(self, *, wait: bool) -> None:
        """Take in what the supervisor said; the kernel ends us when it is gone."""
        while True:
            try:
                message = self._free_slots.get(timeout=5.0) if wait else self._free_slots.get_nowait()
            except Empty:
                return
            wait = False
            match message:
                case SlotFree(slot=slot):
                    self._filled.discard(slot)
                    self._lent.append(slot)
                case Stop():
                    self._told_to_stop = True


def _fill(descriptor: int, segment: memoryview, frames: StreamFrames, digest: hashlib._Hash | None) -> int:
    """Read until the segment is full, END was seen or the pipe is at its end; return the bytes read.

    With a digest they are hashed as they come, while a cache of the CPU has them.
    """
    filled = 0
    while filled < len(segment) and not frames.ended and not frames.fault:
        count = os.readv(descriptor, [segment[filled:]])
        if count == 0:
            break
        piece = segment[filled : filled + count]
        frames.feed(piece)
        if digest is not None:
            digest.update(piece)
        filled += count
    return filled


def _await_close(descriptor: int, frames: StreamFrames) -> None:
    """Read past END, where only the end of the pipe may come; anything else is a fault that `frames` notes."""
    ready, _, _ = select.select([descriptor], [], [], CLOSE_SECONDS_MAX)
    if ready:
        frames.feed(memoryview(os.read(descriptor, 1)))
