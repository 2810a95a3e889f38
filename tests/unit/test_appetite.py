"""How many downloaders a reader gets."""

from __future__ import annotations

from b2s.core.appetite import DOWNLOADERS_AT_FIRST, STARVED_SECONDS, Appetite


def test_begins_with_few_and_never_more_than_there_may_be() -> None:
    """One is one."""
    assert Appetite(8).downloaders == DOWNLOADERS_AT_FIRST
    only = Appetite(1)
    assert (only.downloaders, only.grows) == (1, False)
    assert [only.look(number, starving=True) for number in range(5)] == [1] * 5


def test_reader_that_stands_still_gets_twice_as_many_each_time() -> None:
    """Up to the most, and then it is not worth looking any more."""
    appetite = Appetite(7)
    found = [appetite.look(number * STARVED_SECONDS, starving=True) for number in range(5)]
    assert found == [2, 4, 7, 7, 7]
    assert not appetite.grows


def test_reader_that_is_fed_in_time_gets_no_more() -> None:
    """Standing still counts from when it began, not in sum."""
    appetite = Appetite(8)
    for number in range(20):
        now = number * STARVED_SECONDS
        appetite.look(now, starving=True)
        assert appetite.look(now + 0.9 * STARVED_SECONDS, starving=True) == 2
        appetite.look(now + 0.95 * STARVED_SECONDS, starving=False)


def test_what_was_given_stays() -> None:
    """A line that was slow once may be so again, and an idle downloader costs nothing."""
    appetite = Appetite(4)
    appetite.look(0.0, starving=True)
    assert appetite.look(STARVED_SECONDS, starving=True) == 4
    assert appetite.look(1.0, starving=False) == 4
