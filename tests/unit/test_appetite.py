"""How many downloaders a reader gets."""

from __future__ import annotations

import pytest

from b2s.core.appetite import DOWNLOADERS_AT_FIRST, FIRST_SECONDS, STARVED_SECONDS, WINDOW_SECONDS, Appetite


def test_begins_with_few_and_never_more_than_there_may_be() -> None:
    """One is one."""
    assert Appetite(8).downloaders == DOWNLOADERS_AT_FIRST
    only = Appetite(1)
    assert (only.downloaders, only.grows) == (1, False)
    assert [only.look(number, starving=True, begun=True) for number in range(5)] == [1] * 5


def test_reader_that_stands_still_gets_twice_as_many_each_time() -> None:
    """Up to the most, and then it is not worth looking any more."""
    appetite = Appetite(7)
    found = [appetite.look(1.01 * number * STARVED_SECONDS, starving=True, begun=True) for number in range(5)]
    assert found == [2, 4, 7, 7, 7]
    assert not appetite.grows


@pytest.mark.parametrize(("starved_share", "most_given"), [(0.05, 2), (0.15, 2), (0.3, 16), (0.8, 16)])
def test_the_share_of_the_time_decides_however_short_each_gap_is(starved_share: float, most_given: int) -> None:
    """Small segments come often: each gap is short, and their sum may be most of the time."""
    appetite = Appetite(16)
    for number in range(4000):
        begins = number * 0.02
        appetite.look(begins, starving=True, begun=True)
        appetite.look(begins + 0.02 * starved_share, starving=False, begun=True)
    assert appetite.downloaders == most_given


def test_nothing_is_expected_of_a_stream_that_begins() -> None:
    """Until its first segment came; but a slow line gets more before that."""
    appetite = Appetite(8)
    steps = [number * 0.01 for number in range(200)]
    assert {appetite.look(now, starving=True, begun=False) for now in steps if now < FIRST_SECONDS} == {2}
    assert max(appetite.look(now, starving=True, begun=False) for now in steps if now >= FIRST_SECONDS) == 8


def test_line_that_becomes_slow_later_is_noticed() -> None:
    """However long it was fast."""
    appetite = Appetite(8)
    for number in range(10_000):
        appetite.look(number * 0.1, starving=False, begun=True)
    slow = [appetite.look(1000 + number * 0.1, starving=True, begun=True) for number in range(100)]
    assert slow[int(WINDOW_SECONDS / 0.1)] == 8


def test_what_was_given_stays() -> None:
    """A line that was slow once may be so again, and an idle downloader costs nothing."""
    appetite = Appetite(4)
    appetite.look(0.0, starving=True, begun=True)
    assert appetite.look(STARVED_SECONDS, starving=True, begun=True) == 4
    assert appetite.look(100.0, starving=False, begun=True) == 4
