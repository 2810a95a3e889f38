"""The order of segments: fetched in any, fed in theirs, within the slots."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from b2s.core.fetch_board import FetchBoard, StoredSegment
from b2s.core.messages import FeedSegment, SegmentFed, SegmentFetched
from b2s.core.model import Sha256


def segments(count: int) -> list[StoredSegment]:
    """Return segments of 1, 2, 3, ... bytes."""
    return [StoredSegment(number, "key", "etag", number * 10, number + 1, Sha256(b"")) for number in range(count)]


@given(count=st.integers(0, 40), slots=st.integers(1, 6), choices=st.randoms(use_true_random=False))
def test_everything_is_fed_once_in_order_within_the_slots(count: int, slots: int, choices: object) -> None:
    """Whatever order downloads and feeds end in, feeding is in order and no slot is used twice at a time."""
    board = FetchBoard(iter(segments(count)), slots)
    fetching: list[tuple[int, int]] = []
    feeding: list[FeedSegment] = []
    fed: list[int] = []
    used: set[int] = set()
    while True:
        for task in board.fetches():
            assert task.slot not in used
            assert task.slot < slots
            used.add(task.slot)
            fetching.append((task.segment_number, task.slot))
        if not fetching and not feeding:
            break
        if fetching and (not feeding or choices.random() < 0.5):  # type: ignore[attr-defined]
            number, slot = fetching.pop(choices.randrange(len(fetching)))  # type: ignore[attr-defined]
            assert board.bytes_of(number) == number + 1
            feeding += board.fetched(SegmentFetched(number, slot))
        else:
            task = feeding.pop(0)
            fed.append(task.segment_number)
            used.discard(task.slot)
            board.fed(SegmentFed(task.segment_number, task.slot))
    assert fed == list(range(count))
    assert board.done
    assert board.fed_segments == count
    assert board.fed_bytes == sum(range(1, count + 1))
    assert board.allocated <= slots


def test_reader_starves_while_nothing_is_left_to_read_and_more_is_to_come() -> None:
    """Not while it has something, also if that is the last; not after the end."""
    board = FetchBoard(iter(segments(3)), 2)
    assert not board.starving
    first, second = board.fetches()
    assert board.starving
    board.fetched(SegmentFetched(second.segment_number, second.slot))  # out of order: of no use yet
    assert board.starving
    board.fetched(SegmentFetched(first.segment_number, first.slot))
    assert not board.starving
    board.fed(SegmentFed(0, first.slot))
    (third,) = board.fetches()
    board.fed(SegmentFed(1, second.slot))
    assert board.starving
    board.fetched(SegmentFetched(third.segment_number, third.slot))
    board.fed(SegmentFed(2, third.slot))
    assert board.fetches() == []
    assert not board.starving
