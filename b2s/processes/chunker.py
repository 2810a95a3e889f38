"""The chunker process: reads the stream from `btrfs send`, cuts it into segments, spools and announces them."""

from __future__ import annotations

import hashlib
import os
import select
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any

from b2s.adapters import pipe
from b2s.adapters.spool import Spool
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
    free_slots: Queue[Any],
    announcements: Queue[Any],
) -> None:
    """Run until the stream ends; the reading end `stream` is ours to close."""
    with child_process(boot):
        _cut(stream, spool_path, sizes, free_slots, announcements)


def _cut(stream: Connection, spool_path: Path, sizes: Sizes, free_slots: Queue[Any], announcements: Queue[Any]) -> None:
    spool = Spool.attach(spool_path, sizes.segment_size_bytes, writable=True)
    descriptor = stream.fileno()
    pipe.enlarge(descriptor)
    frames = StreamFrames()
    segment_number = 0
    while not frames.ended:
        slot = _next_slot(spool, free_slots, announcements)
        if slot is None:
            return
        segment = spool.slot(slot)
        filled = _fill(descriptor, segment, frames)
        if frames.ended:
            _await_close(descriptor, frames)
        if frames.fault or (not frames.ended and filled < len(segment)):
            break  # a short segment is only announced when END was seen
        place = sizes.place(segment_number)
        last_in_chunk = place.fills_chunk or frames.ended
        sha256 = _hash_meanwhile(segment[:filled], free_slots)
        announcements.put(SegmentSpooled(place.chunk_index, place.segment_index, slot, filled, last_in_chunk, sha256))
        segment_number += 1
    stream.close()
    verdict = frames.finish()
    announcements.put(StreamEnded(verdict.stream_bytes, verdict.whole, verdict.detail, bool(frames.fault)))


def _next_slot(spool: Spool, free_slots: Queue[Any], announcements: Queue[Any]) -> int | None:
    """Wait for a slot with room in it; None when told to stop."""
    while True:
        try:
            message = free_slots.get(timeout=5.0)
        except Empty:
            continue  # the kernel ends us when the supervisor is gone
        match message:
            case SlotFree(slot=slot):
                try:
                    spool.allocate(slot)
                except SpoolFull as error:
                    announcements.put(SlotUnusable(slot, error.message))
                    continue
                return slot
            case Stop():
                return None


def _hash_meanwhile(content: memoryview, free_slots: Queue[Any]) -> Sha256 | None:
    """Hash a segment where we would only wait for a slot: its uploader need not keep the line waiting for that."""
    return Sha256(hashlib.sha256(content).digest()) if free_slots.empty() else None


def _fill(descriptor: int, segment: memoryview, frames: StreamFrames) -> int:
    """Read until the segment is full, END was seen or the pipe is at its end; return the bytes read."""
    filled = 0
    while filled < len(segment) and not frames.ended and not frames.fault:
        count = os.readv(descriptor, [segment[filled:]])
        if count == 0:
            break
        frames.feed(segment[filled : filled + count])
        filled += count
    return filled


def _await_close(descriptor: int, frames: StreamFrames) -> None:
    """Read past END, where only the end of the pipe may come; anything else is a fault that `frames` notes."""
    ready, _, _ = select.select([descriptor], [], [], CLOSE_SECONDS_MAX)
    if ready:
        frames.feed(memoryview(os.read(descriptor, 1)))
