"""The feeder: what it hands over, when it gives slots back, and how it says that nobody reads any more."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from b2s.adapters import pipe
from b2s.adapters.spool import Spool
from b2s.core.messages import FeedEnd, FeedSegment, SegmentFed, Stop, StreamFed, WorkerReady
from b2s.errors import ReceiveFailed, SpoolDamaged
from b2s.processes.feeder import PIPE_BYTES, SPLICE_BYTES, Feed

SLOT_BYTES = 3 * SPLICE_BYTES + 7
SMALL_BYTES = 100_000  # less than a pipe holds without being asked to
LONG_SECONDS = 20.0


class Bench:
    """A feeder in this process, both ends of its pipe, and what it reports."""

    def __init__(self, directory: Path) -> None:
        self.spool = Spool.create(directory / "spool", "feeder", SLOT_BYTES, {})
        for slot in range(2):
            self.spool.allocate(slot)
            self.spool.slot(slot)[:] = os.urandom(SLOT_BYTES)
        self.reader, self.writer = multiprocessing.Pipe(duplex=False)
        self.replies, replies_writer = multiprocessing.Pipe(duplex=False)
        self.feed = Feed(self.writer, self.spool, replies_writer)

    def reports(self) -> list[Any]:
        """Take what was reported so far."""
        found = []
        while self.replies.poll():
            found.append(self.replies.recv())
        return found

    def read(self, size: int) -> bytes:
        """Read exactly so much."""
        content = b""
        while len(content) < size:
            content += os.read(self.reader.fileno(), size - len(content))
        return content

    def content(self, slot: int, size: int) -> bytes:
        """Return what the reader has to get of a slot."""
        return bytes(self.spool.slot(slot)[:size])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A feeder with a spool of two slots of random bytes."""
    made = Bench(tmp_path)
    yield made
    for end in (made.reader, made.writer, made.replies):
        end.close()


def read_all(reader: Connection, got: list[bytes]) -> None:
    """Read until the end."""
    while piece := os.read(reader.fileno(), 100_000):
        got.append(piece)


def test_segments_go_into_the_pipe_whole_and_then_it_ends(bench: Bench) -> None:
    """What the reader gets is the named part of each slot, as often as it was named, and then the end."""
    got: list[bytes] = []
    thread = threading.Thread(target=read_all, args=(bench.reader, got))
    thread.start()
    tasks: Queue[object] = Queue()
    expected = bench.content(0, SLOT_BYTES) + bench.content(1, 11) + bench.content(0, 5)
    feeding = threading.Thread(target=bench.feed.run, args=(tasks,))
    feeding.start()
    segments = [FeedSegment(0, 0, SLOT_BYTES), FeedSegment(1, 1, 11), FeedSegment(2, 0, 5)]
    for segment in segments:
        tasks.put(segment)
    reports = [bench.replies.recv() for _ in range(4)]
    assert reports == [WorkerReady(), *(SegmentFed(each.segment_number, each.slot) for each in segments)]
    tasks.put(FeedEnd())
    assert bench.replies.recv() == StreamFed(len(expected))
    feeding.join(LONG_SECONDS)
    thread.join(LONG_SECONDS)
    assert b"".join(got) == expected


def test_slot_is_given_back_when_its_last_byte_was_read(bench: Bench) -> None:
    """Until then it must not be filled again: the pipe holds its very pages."""
    first, second = FeedSegment(0, 0, SMALL_BYTES), FeedSegment(1, 1, 10)
    pipe.enlarge(bench.writer.fileno(), PIPE_BYTES)
    bench.feed.hand_over(first)
    bench.feed.hand_over(second)
    assert bench.reports() == []
    expected = bench.content(0, SMALL_BYTES)
    assert bench.read(SMALL_BYTES - 1) == expected[:-1]
    bench.feed.give_back()
    assert bench.reports() == []
    assert bench.read(1) == expected[-1:]
    bench.feed.give_back()
    assert bench.reports() == [SegmentFed(0, 0)]
    assert bench.read(10) == bench.content(1, 10)
    bench.feed.give_back()
    assert bench.reports() == [SegmentFed(1, 1)]


def test_slot_that_was_read_is_given_back_without_another_task(bench: Bench) -> None:
    """With one slot there never is one: the next segment needs it."""
    tasks: Queue[object] = Queue()
    feeding = threading.Thread(target=bench.feed.run, args=(tasks,))
    feeding.start()
    assert bench.replies.recv() == WorkerReady()
    tasks.put(FeedSegment(0, 0, 5))
    assert not bench.replies.poll(0.2)
    assert bench.read(5) == bench.content(0, 5)
    assert bench.replies.poll(LONG_SECONDS)
    assert bench.replies.recv() == SegmentFed(0, 0)
    tasks.put(FeedEnd())
    feeding.join(LONG_SECONDS)
    assert not feeding.is_alive()


def test_reader_that_is_gone_before(bench: Bench) -> None:
    """A closed pipe is told with how far it got."""
    bench.reader.close()
    with pytest.raises(ReceiveFailed, match="of the 0 bytes"):
        bench.feed.hand_over(FeedSegment(0, 0, SLOT_BYTES))


def test_reader_that_goes_with_bytes_unread(bench: Bench) -> None:
    """All is in the pipe, nobody will ever read it: that must not look like waiting."""
    bench.feed.hand_over(FeedSegment(0, 0, 10))
    bench.read(9)
    bench.reader.close()
    with pytest.raises(ReceiveFailed, match="of the 10 bytes"):
        bench.feed.run(Queue())


def test_reader_that_goes_with_everything_read(bench: Bench) -> None:
    """`btrfs receive --dump` ends at the END command, before we close the pipe."""
    bench.feed.hand_over(FeedSegment(0, 0, 10))
    bench.read(10)
    bench.reader.close()
    bench.feed.give_back()
    assert bench.reports() == [SegmentFed(0, 0)]


def test_reader_that_reads_the_rest_and_goes_while_we_look(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that was taken before it ended says nothing about what was left unread."""
    bench.feed.hand_over(FeedSegment(0, 0, 10))
    look = pipe.unread_bytes

    def late(descriptor: int) -> int:
        unread = look(descriptor)
        bench.read(unread)
        bench.reader.close()
        return unread

    monkeypatch.setattr(pipe, "unread_bytes", late)
    bench.feed.give_back()
    monkeypatch.undo()
    bench.feed.give_back()
    assert bench.reports() == [SegmentFed(0, 0)]


@pytest.mark.parametrize("size", [0, 4096])
def test_slot_that_was_shortened(bench: Bench, size: int) -> None:
    """Somebody else wrote in the spool: an error, no endless loop and no SIGBUS."""
    os.truncate(bench.spool.path / "slot-000000", size)
    with pytest.raises(SpoolDamaged, match=f"ends at byte {size}"):
        bench.feed.hand_over(FeedSegment(0, 0, SMALL_BYTES))


def test_slot_that_was_removed(bench: Bench) -> None:
    """The same for a slot that is gone."""
    (bench.spool.path / "slot-000001").unlink()
    with pytest.raises(SpoolDamaged, match="not as it was made"):
        bench.feed.hand_over(FeedSegment(0, 1, SMALL_BYTES))


def test_other_tasks_are_a_bug(bench: Bench) -> None:
    """It does nothing but feed."""
    tasks: Queue[object] = Queue()
    tasks.put(Stop())
    with pytest.raises(TypeError):
        bench.feed.run(tasks)


def test_bytes_under_way_to_a_slow_reader_stay_as_they_were(bench: Bench) -> None:
    """A slot that is filled again as soon as it is given back never changes what the reader gets."""
    got: list[bytes] = []

    def read_slowly() -> None:
        while piece := os.read(bench.reader.fileno(), 300_000):
            got.append(piece)
            time.sleep(0.001)

    thread = threading.Thread(target=read_slowly)
    thread.start()
    pipe.enlarge(bench.writer.fileno(), PIPE_BYTES)
    tasks: Queue[object] = Queue()
    feeding = threading.Thread(target=bench.feed.run, args=(tasks,))
    feeding.start()
    assert bench.replies.recv() == WorkerReady()
    expected: list[bytes] = []
    for number in range(8):
        slot = number % 2
        if number >= 2:
            assert bench.replies.recv() == SegmentFed(number - 2, slot)
        bench.spool.slot(slot)[:] = bytes([number + 1]) * SLOT_BYTES
        expected.append(bench.content(slot, SLOT_BYTES))
        tasks.put(FeedSegment(number, slot, SLOT_BYTES))
    assert [bench.replies.recv() for _ in range(2)] == [SegmentFed(6, 0), SegmentFed(7, 1)]
    tasks.put(FeedEnd())
    feeding.join(LONG_SECONDS)
    thread.join(LONG_SECONDS)
    assert b"".join(got) == b"".join(expected)
