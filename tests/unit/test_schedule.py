"""Slots: when the next backup is due, on ordinary days and on the odd ones."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from b2s.core.schedule import Slot, Slots

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
BERLIN = ZoneInfo("Europe/Berlin")


def slots(run_at: str = "02:00", zone: str = "Europe/Berlin") -> Slots:
    """Return the slots of one schedule."""
    return Slots(time.fromisoformat(run_at), ZoneInfo(zone))


def at(text: str) -> datetime:
    """Return a moment from its ISO form with offset."""
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("zone", "run_at", "day", "begins"),
    [
        ("Europe/Berlin", "02:00", date(2026, 6, 14), "2026-06-14T02:00+02:00"),
        ("Europe/Berlin", "02:00", date(2026, 3, 29), "2026-03-29T03:00+02:00"),
        ("Europe/Berlin", "02:30", date(2026, 3, 29), "2026-03-29T03:00+02:00"),
        ("Europe/Berlin", "03:00", date(2026, 3, 29), "2026-03-29T03:00+02:00"),
        ("Europe/Berlin", "01:59", date(2026, 3, 29), "2026-03-29T01:59+01:00"),
        ("Europe/Berlin", "02:30", date(2026, 10, 25), "2026-10-25T02:30+02:00"),
        ("Europe/Berlin", "03:00", date(2026, 10, 25), "2026-10-25T03:00+01:00"),
        ("America/New_York", "02:30", date(2026, 3, 8), "2026-03-08T03:00-04:00"),
        ("America/New_York", "01:30", date(2026, 11, 1), "2026-11-01T01:30-04:00"),
        ("Australia/Lord_Howe", "02:15", date(2026, 10, 4), "2026-10-04T02:30+11:00"),
        ("Australia/Lord_Howe", "01:45", date(2026, 4, 5), "2026-04-05T01:45+11:00"),
        ("Pacific/Apia", "02:00", date(2011, 12, 30), "2011-12-31T00:00+14:00"),
        ("UTC", "00:00", date(2026, 1, 1), "2026-01-01T00:00+00:00"),
    ],
)
def test_a_day_begins_at_run_at(zone: str, run_at: str, day: date, begins: str) -> None:
    """A day begins at run_at; in a gap at the first instant after it, in a doubled hour at the first pass."""
    begin = slots(run_at, zone).begin_of_day(day)
    assert begin == at(begins)
    assert begin.tzinfo is UTC


def test_a_moment_belongs_to_the_day_whose_run_at_is_past() -> None:
    """The slot changes exactly at run_at, not at midnight."""
    daily = slots()
    assert daily.day_of(at("2026-06-14T01:59:59+02:00")) == date(2026, 6, 13)
    assert daily.day_of(at("2026-06-14T02:00:00+02:00")) == date(2026, 6, 14)


def test_both_passes_of_a_doubled_hour_lie_in_one_slot() -> None:
    """The second 02:10 of the night belongs to the slot that began with the first 02:00."""
    daily = slots()
    assert daily.day_of(at("2026-10-25T02:10+02:00")) == daily.day_of(at("2026-10-25T02:10+01:00"))


def test_a_doubled_midnight_does_not_bring_back_the_day_before() -> None:
    """Where the clock falls back over run_at at midnight, the second pass still belongs to the new day."""
    havana = slots("00:30", "America/Havana")  # 2026-11-01 01:00 falls back to 00:00
    assert havana.day_of(at("2026-11-01T00:10-05:00")) == date(2026, 11, 1)


@pytest.mark.parametrize("finished", ["02:00:00", "02:59:59", "23:59:00"])
def test_a_week_counts_from_the_slot_not_from_the_second(finished: str) -> None:
    """However late on its day a backup was made, the next is due at run_at seven days later."""
    assert slots().due_after(at(f"2026-06-14T{finished}+02:00"), 7 * DAY) == at("2026-06-21T02:00+02:00")


def test_a_week_across_a_change_of_the_clock_keeps_its_hour() -> None:
    """Seven days of 167 or 169 hours end at run_at all the same."""
    assert slots().due_after(at("2026-03-25T02:10+01:00"), 7 * DAY) == at("2026-04-01T02:00+02:00")
    assert slots().due_after(at("2026-10-21T02:10+02:00"), 7 * DAY) == at("2026-10-28T02:00+01:00")


@pytest.mark.parametrize(
    ("made", "hours", "due"),
    [
        ("2026-06-14T02:10+02:00", 6, "2026-06-14T08:00+02:00"),
        ("2026-06-14T13:59+02:00", 6, "2026-06-14T14:00+02:00"),
        ("2026-06-14T20:00+02:00", 6, "2026-06-15T02:00+02:00"),
        ("2026-06-14T22:10+02:00", 5, "2026-06-15T02:00+02:00"),  # 22:00 + 5 h would pass run_at
        ("2026-03-28T20:10+01:00", 6, "2026-03-29T03:00+02:00"),  # a day that ends in the gap
        ("2026-03-29T21:10+02:00", 6, "2026-03-30T02:00+02:00"),  # of 23 hours, begun at 03:00
        ("2026-10-25T20:10+01:00", 6, "2026-10-26T01:00+01:00"),  # of 25 hours
        ("2026-10-26T01:10+01:00", 6, "2026-10-26T02:00+01:00"),
        ("2026-06-14T02:10+02:00", 36, "2026-06-15T14:00+02:00"),
        ("2026-06-15T14:10+02:00", 36, "2026-06-17T02:00+02:00"),
        ("2026-06-14T02:10+02:00", 36 + 24 * 180, "2026-12-12T14:00+01:00"),
    ],
)
def test_other_intervals_divide_the_day_from_run_at(made: str, hours: int, due: str) -> None:
    """Intervals that are not whole days have slots counted from the day's run_at, anew each day."""
    assert slots().due_after(at(made), hours * HOUR) == at(due)


def test_slots_within_a_day_are_numbered() -> None:
    """A six-hourly schedule has four slots on an ordinary day."""
    day = date(2026, 6, 14)
    assert slots().slot_of(at("2026-06-14T02:00+02:00"), 6 * HOUR) == Slot(day, 0)
    assert slots().slot_of(at("2026-06-15T01:59+02:00"), 6 * HOUR) == Slot(day, 3)
    assert slots().slot_of(at("2026-06-15T01:59+02:00"), 7 * DAY) == Slot(day, 0)


def test_due_exactly_at_the_slot() -> None:
    """A source is not due a second before its slot, and due from its first instant on."""
    made = at("2026-06-14T02:10+02:00")
    assert not slots().is_due(made, 7 * DAY, at("2026-06-21T01:59:59+02:00"))
    assert slots().is_due(made, 7 * DAY, at("2026-06-21T02:00:00+02:00"))


def test_a_run_missed_for_days_is_due_at_the_next_call() -> None:
    """A host that was off at its slot catches up whenever it is asked again."""
    made = at("2026-06-14T02:10+02:00")
    assert slots().next_due(made, 7 * DAY, at("2026-06-24T17:43+02:00")) == at("2026-06-21T02:00+02:00")


def test_a_slow_clock_makes_nothing_twice() -> None:
    """A clock set back two days does not make a weekly source due, it only waits for its slot."""
    made = at("2026-06-14T02:10+02:00")
    assert not slots().is_due(made, 7 * DAY, made - 2 * DAY)


def test_a_backup_from_the_far_future_does_not_block_the_next() -> None:
    """A backup that a mad clock dated ten years ahead leaves the source due."""
    now = at("2026-06-14T02:10+02:00")
    assert slots().next_due(now + 3650 * DAY, 7 * DAY, now) == now
    assert slots().is_due(now + 3650 * DAY, 7 * DAY, now)


def test_a_clock_ten_years_ahead_makes_due_and_does_not_crash() -> None:
    """Ten years later, everything is due."""
    made = at("2026-06-14T02:10+02:00")
    assert slots().is_due(made, 180 * DAY, made + 3650 * DAY)


@pytest.mark.parametrize("made", [datetime.min.replace(tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)])
@pytest.mark.parametrize("interval", [DAY, 36_500 * DAY, timedelta.max])
def test_no_moment_leaves_the_calendar(made: datetime, interval: timedelta) -> None:
    """Moments and intervals at the end of the calendar have an answer too."""
    for zone in ("Pacific/Kiritimati", "Pacific/Niue"):
        assert slots(zone=zone).due_after(made, interval).year < 2200


def test_another_zone_moves_the_slot_and_nothing_else() -> None:
    """A zone changed in the config counts the same moment in the new zone's days."""
    made = at("2026-06-14T02:10+02:00")  # 20:10 of the day before in New York
    assert slots().due_after(made, 7 * DAY) == at("2026-06-21T02:00+02:00")
    assert slots(zone="America/New_York").due_after(made, 7 * DAY) == at("2026-06-20T02:00-04:00")
