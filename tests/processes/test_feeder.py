"""The feeder: what it writes, and how it says that nobody reads any more."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from b2s.adapters.spool import Spool
from b2s.core.messages import FeedEnd, FeedSegment, SegmentFed, Stop, StreamFed
from b2s.errors import ReceiveFailed
from b2s.processes.feeder import WRITE_BYTES_MAX, _Feed, write_all

SLOT_BYTES = 3 * WRITE_BYTES_MAX + 7


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A spool of one slot with random bytes."""
    made = Spool.create(tmp_path / "spool", "feeder", SLOT_BYTES, {})
    made.allocate(0)
    made.slot(0)[:] = os.urandom(SLOT_BYTES)
    return made


def test_segments_go_into_the_pipe_whole_and_then_it_ends(spool: Spool) -> None:
    """What the reader gets is the named part of the slot, as often as it was named, and then the end."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    got: list[bytes] = []

    def read() -> None:
        while piece := os.read(reader.fileno(), 100_000):
            got.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    feed = _Feed(writer, spool)
    assert feed.do(FeedSegment(0, 0, SLOT_BYTES)) == SegmentFed(0, 0)
    assert feed.do(FeedSegment(1, 0, 11)) == SegmentFed(1, 0)
    assert feed.do(FeedEnd()) == StreamFed(SLOT_BYTES + 11)
    thread.join(10)
    content = bytes(spool.slot(0))
    assert b"".join(got) == content + content[:11]
    reader.close()


def test_reader_that_is_gone(spool: Spool) -> None:
    """A closed pipe is told with how far it got."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    reader.close()
    with pytest.raises(ReceiveFailed, match="after 0 bytes"):
        _Feed(writer, spool).do(FeedSegment(0, 0, SLOT_BYTES))
    writer.close()


def test_other_tasks_are_a_bug(spool: Spool) -> None:
    """It does nothing but feed."""
    _, writer = multiprocessing.Pipe(duplex=False)
    with pytest.raises(TypeError):
        _Feed(writer, spool).do(Stop())


def test_write_all_goes_on_where_the_pipe_stopped() -> None:
    """However little is taken at once, everything is written in order, in pieces of at most a pipe's size."""
    content = os.urandom(2 * WRITE_BYTES_MAX + 5)
    written = bytearray()

    def write(_descriptor: int, piece: memoryview) -> int:
        assert 0 < len(piece) <= WRITE_BYTES_MAX
        count = max(1, len(piece) // 3)
        written.extend(piece[:count])
        return count

    write_all(0, memoryview(content), write)
    assert written == content
