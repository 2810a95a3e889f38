"""How many workers a stream gets."""

from __future__ import annotations

import pytest

from b2s.core.appetite import FIRST_SECONDS, HELD_UP_SECONDS, WINDOW_SECONDS, WORKERS_AT_FIRST, Appetite, CpuUse

IDLE = CpuUse()  # they wait for the line all the time


def look(appetite: Appetite, now: float, *, held_up: bool = True, begun: bool = True, cpu: CpuUse = IDLE) -> int:
    """Look at a stream that by default has begun and is held up by workers that wait for the line."""
    return appetite.look(now, held_up=held_up, begun=begun, cpu=cpu)


def test_begins_with_few_and_never_more_than_there_may_be() -> None:
    """One is one."""
    assert Appetite(8).workers == WORKERS_AT_FIRST
    only = Appetite(1)
    assert (only.workers, only.grows) == (1, False)
    assert [look(only, number) for number in range(5)] == [1] * 5


@pytest.mark.parametrize(("round_trip_seconds", "workers"), [(0.0149, WORKERS_AT_FIRST), (0.015, 8)])
def test_far_store_gets_all_at_once(round_trip_seconds: float, workers: int) -> None:
    """Its round trips are what workers will wait for; that need not be found out by waiting."""
    appetite = Appetite(8, round_trip_seconds)
    assert (appetite.workers, appetite.grows) == (workers, workers < 8)


def test_stream_that_is_held_up_gets_twice_as_many_each_time() -> None:
    """Up to the most, and then it is not worth looking any more. Here they run for half of their time."""
    appetite, ran_seconds, found = Appetite(7), 0.0, []
    for number in range(5):
        found.append(look(appetite, 1.01 * number * HELD_UP_SECONDS, cpu=CpuUse(ran_seconds)))
        ran_seconds += appetite.workers * HELD_UP_SECONDS / 2
    assert found == [2, 4, 7, 7, 7]
    assert not appetite.grows


@pytest.mark.parametrize(("ran_share", "workers"), [(0.24, 64), (0.27, 4)])
def test_workers_that_do_little_but_wait_for_the_line_get_all_company_at_once(ran_share: float, workers: int) -> None:
    """A far store is known as such by the first segments, long before one of them is there."""
    appetite = Appetite(64)
    look(appetite, 0.0)
    cpu = CpuUse(ran_share * WORKERS_AT_FIRST * HELD_UP_SECONDS)
    assert look(appetite, HELD_UP_SECONDS, cpu=cpu) == workers


@pytest.mark.parametrize(("share", "most_given"), [(0.05, 2), (0.15, 2), (0.3, 16), (0.8, 16)])
def test_the_share_of_the_time_decides_however_short_each_gap_is(share: float, most_given: int) -> None:
    """Small segments come often: each gap is short, and their sum may be most of the time."""
    appetite = Appetite(16)
    for number in range(4000):
        begins = number * 0.02
        look(appetite, begins)
        look(appetite, begins + 0.02 * share, held_up=False)
    assert appetite.workers == most_given


def test_nothing_is_expected_of_a_stream_that_begins() -> None:
    """Until its first segment came; but a slow line gets more before that."""
    appetite = Appetite(8)
    steps = [number * 0.01 for number in range(200)]
    assert {look(appetite, now, begun=False) for now in steps if now < FIRST_SECONDS} == {2}
    assert max(look(appetite, now, begun=False) for now in steps if now >= FIRST_SECONDS) == 8


def test_line_that_becomes_slow_later_is_noticed() -> None:
    """However long it was fast."""
    appetite = Appetite(8)
    for number in range(10_000):
        look(appetite, number * 0.1, held_up=False)
    slow = [look(appetite, 1000 + number * 0.1) for number in range(100)]
    assert slow[int(WINDOW_SECONDS / 0.1)] == 8


def test_what_was_given_stays() -> None:
    """A line that was slow once may be so again, and an idle worker costs nothing."""
    appetite = Appetite(4)
    look(appetite, 0.0)
    assert look(appetite, HELD_UP_SECONDS) == 4
    assert look(appetite, 100.0, held_up=False) == 4


@pytest.mark.parametrize(
    ("ran", "waited", "most_given"),
    [
        (0.33, 0.36, 2),  # two cores that also hold the server: more uploaders would only wait with them
        (0.14, 0.72, 2),
        (0.07, 0.01, 16),  # a round trip of 30 ms and 50 MB/s per connection
        (0.07, 0.20, 16),  # the same on a machine with other work
        (0.95, 0.02, 16),  # a slow CPU with idle ones beside it
    ],
)
def test_workers_that_wait_for_a_cpu_get_no_company(ran: float, waited: float, most_given: int) -> None:
    """Shares of each worker's time, as measured on real machines."""
    appetite, ran_seconds, waited_seconds = Appetite(16), 0.0, 0.0
    for number in range(200):
        workers = look(appetite, number * 0.05, cpu=CpuUse(ran_seconds, waited_seconds))
        ran_seconds += 0.05 * workers * ran
        waited_seconds += 0.05 * workers * waited
    assert appetite.workers == most_given


def test_cpu_that_was_short_once_does_not_count_for_ever() -> None:
    """Nor does a worker that died take its times with it."""
    appetite = Appetite(8)
    for number in range(100):
        look(appetite, number * 0.1, cpu=CpuUse(0.05 * number, 0.1 * number))
    assert appetite.workers == 2
    assert [look(appetite, 10 + number * 0.1) for number in range(10)][-1] == 8
