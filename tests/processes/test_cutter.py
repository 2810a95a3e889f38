"""The chunker process alone, fed streams of every length around its boundaries."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

from b2s.adapters.spool import Spool
from b2s.core.leisure import Leisure
from b2s.core.messages import SegmentSpooled, SlotFree, Stop, StreamEnded
from b2s.core.settings import LogSettings
from b2s.core.sizing import Sizes
from b2s.processes import chunker, forkserver
from b2s.processes.child import ChildBoot, process_context
from scripts.bench.synthetic_stream import pieces

SEGMENT = 4096
SIZES = Sizes(SEGMENT, 2 * SEGMENT)
END_BYTES = 10
SECONDS_MAX = 30.0

LENGTHS = [
    2 * SEGMENT - 1,  # the last segment of a chunk, one byte short
    2 * SEGMENT,  # the stream ends where a chunk ends
    2 * SEGMENT + 1,  # one byte of the END command begins the next chunk
    2 * SEGMENT + END_BYTES,  # the END command is all that the next chunk holds
    3 * SEGMENT - 1,
    3 * SEGMENT,  # the stream ends where a segment ends, in the middle of a chunk
    3 * SEGMENT + 1,
    4 * SEGMENT,
]


def stream_of_length(length: int) -> bytes:
    """Return a whole stream of exactly so many bytes."""
    return b"".join(pieces(length))


class Cutter:
    """A chunker process, its pipe and its queues; the segments it announced, read from the spool."""

    def __init__(self, tmp_path: Path) -> None:
        context = process_context()
        self.spool = Spool.create(tmp_path / "spool", "cutter", SEGMENT, {})
        self.free_slots, self.announcements = context.Queue(), context.Queue()
        reader, self.writer = context.Pipe(duplex=False)
        boot = ChildBoot("cutter", "chunker", LogSettings(level="warning", format="json"))
        self.process = context.Process(
            target=chunker.main,
            args=(boot, reader, self.spool.path, SIZES, Leisure(True, 0), self.free_slots, self.announcements),
            daemon=True,
        )
        forkserver.start(self.process)
        reader.close()

    def cut(self, *fed: bytes) -> tuple[list[tuple[int, int, bool, bytes]], StreamEnded]:
        """Feed the bytes; return (chunk, segment, last in chunk, content) of every segment, and the verdict."""
        self.free_slots.put(SlotFree(0))
        for piece in fed:
            assert os.write(self.writer.fileno(), piece) == len(piece)  # a pipe holds more than is ever fed
        self.writer.close()
        segments = []
        while True:
            message = self._next()
            if isinstance(message, StreamEnded):
                return segments, message
            assert isinstance(message, SegmentSpooled)
            content = bytes(self.spool.slot(message.slot)[: message.bytes])
            assert message.sha256 == hashlib.sha256(content).digest()  # nobody else has anything to do
            segments.append((message.chunk_index, message.segment_index, message.last_in_chunk, content))
            self.free_slots.put(SlotFree(0))

    def _next(self) -> Any:
        try:
            return self.announcements.get(timeout=SECONDS_MAX)
        except Empty:
            pytest.fail("the chunker says nothing")

    def close(self) -> None:
        """End the process."""
        self.free_slots.put(Stop())
        self.process.join(SECONDS_MAX)
        assert self.process.exitcode == 0
        for queue in (self.free_slots, self.announcements):
            queue.close()
        self.spool.remove()


@pytest.fixture
def cutter(tmp_path: Path, fresh_forkserver: None) -> Iterator[Cutter]:
    """Start a chunker."""
    made = Cutter(tmp_path)
    yield made
    made.close()


def lent(spool: Spool, *slots: int) -> chunker._Slots:
    """Return what a chunker sees to which these slots were lent."""
    queue: Queue[SlotFree] = process_context().Queue()
    made = chunker._Slots(spool, queue, process_context().Queue())
    for slot in slots:
        queue.put(SlotFree(slot))
        assert queue._reader.poll(SECONDS_MAX)  # type: ignore[attr-defined]  # a thread puts it there
        assert made.any
    return made


def test_slot_that_has_its_room_goes_first(tmp_path: Path) -> None:
    """A new one is only made where none of the others is free."""
    spool = Spool.create(tmp_path / "spool", "slots", SEGMENT, {})
    slots = lent(spool, 0, 1)
    assert slots.next() == 0
    spool.slot(0)
    slots.announce(SegmentSpooled(0, 0, 0, SEGMENT, False))
    assert slots.in_flight == 1
    slots._free_slots.put(SlotFree(0))
    assert slots._free_slots._reader.poll(SECONDS_MAX)  # type: ignore[attr-defined]
    assert [slots.next(), slots.next()] == [0, 1]
    assert slots.in_flight == 0
    assert not slots.any
    spool.remove()


def test_slot_that_was_freed_last_goes_first(tmp_path: Path) -> None:
    """The rest of a large spool on a disk is left alone, whatever it held when the line was slow."""
    spool = Spool.create(tmp_path / "spool", "slots", SEGMENT, {})
    for slot in range(3):
        spool.allocate(slot)
        spool.slot(slot)
    slots = lent(spool, 1, 2, 0, 3)
    assert [slots.next() for _ in range(4)] == [0, 2, 1, 3]
    spool.remove()


@pytest.mark.parametrize("length", LENGTHS)
def test_stream_is_cut_where_the_sizes_say(cutter: Cutter, length: int) -> None:
    """Laid end to end the segments are the stream; none is empty, and exactly the last of each chunk says so."""
    stream = stream_of_length(length)
    segments, ended = cutter.cut(stream)
    assert (ended.whole, ended.detail, ended.stream_bytes) == (True, "", length)
    assert b"".join(content for *_, content in segments) == stream
    count = SIZES.count(length)
    assert [(chunk, segment) for chunk, segment, *_ in segments] == [divmod(n, 2) for n in range(count.segments)]
    assert len(segments[-1][3]) == count.last_segment_bytes
    assert [last for *_, last, _ in segments] == [n % 2 == 1 or n == count.segments - 1 for n in range(count.segments)]


@pytest.mark.parametrize("cut", [1, 13, 17, 27, SEGMENT - 1, SEGMENT, SEGMENT + 1])
def test_pipe_may_hand_out_any_pieces(cutter: Cutter, cut: int) -> None:
    """However the bytes come in, they are cut at the same places."""
    stream = stream_of_length(2 * SEGMENT + 1)
    segments, ended = cutter.cut(stream[:cut], stream[cut:])
    assert [len(content) for *_, content in segments] == [SEGMENT, SEGMENT, 1]
    assert b"".join(content for *_, content in segments) == stream
    assert ended.whole


@pytest.mark.parametrize("length", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 2 * SEGMENT + 1])
def test_stream_without_its_end_announces_no_short_segment(cutter: Cutter, length: int) -> None:
    """A stream that breaks off is not whole, and what is spooled of a segment cut short is never announced."""
    segments, ended = cutter.cut(stream_of_length(3 * SEGMENT)[:length])
    assert (ended.whole, ended.stream_bytes) == (False, length)
    assert ended.detail == "the stream is empty" if length == 0 else "ends after" in ended.detail
    assert [len(content) for *_, content in segments] == [SEGMENT] * (length // SEGMENT)


@pytest.mark.parametrize("length", [2 * SEGMENT, 2 * SEGMENT + 1])
def test_byte_after_the_end_is_a_fault(cutter: Cutter, length: int) -> None:
    """The segment that holds END is not announced when more comes behind it, also exactly at a boundary."""
    segments, ended = cutter.cut(stream_of_length(length), b"x")
    assert not ended.whole
    assert ended.given_up
    assert "1 bytes follow the END command" in ended.detail
    assert len(segments) == (length - 1) // SEGMENT
