"""Slots hold for any zone, time of day, interval and moment."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from b2s.core.schedule import Slots

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Kiritimati",
    "Africa/Casablanca",
    "Asia/Kathmandu",
    "Antarctica/Troll",
)

schedules = st.builds(
    Slots,
    st.builds(time, st.integers(0, 23), st.integers(0, 59)),
    st.sampled_from(ZONES).map(ZoneInfo),
)
moments = st.datetimes(datetime(2005, 1, 1), datetime(2060, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))  # noqa: DTZ001
whole_days = st.integers(1, 400).map(lambda days: days * DAY)
odd_intervals = st.integers(1, 60 * 24 * 40).map(lambda minutes: minutes * MINUTE).filter(lambda span: span % DAY)


@given(schedules, moments)
def test_every_moment_lies_in_one_slot(slots: Slots, moment: datetime) -> None:
    """A moment lies at or after the beginning of its day's slot and before the next one's."""
    day = slots.day_of(moment)
    assert slots.begin_of_day(day) <= moment < slots.begin_of_day(day + DAY)


@given(schedules, moments)
def test_days_begin_when_the_wall_clock_first_reads_run_at(slots: Slots, moment: datetime) -> None:
    """At the beginning the wall clock reads run_at or, after a gap, later; never a second before."""
    day = slots.day_of(moment)
    wanted = datetime.combine(day, slots.run_at)
    begin = slots.begin_of_day(day)
    assert begin.astimezone(slots.zone).replace(tzinfo=None) >= wanted
    assert (begin - timedelta(seconds=1)).astimezone(slots.zone).replace(tzinfo=None) < wanted


@given(schedules, moments, whole_days)
def test_a_backup_at_its_due_moment_never_slips(slots: Slots, made: datetime, interval: timedelta) -> None:
    """Made when due or any time later that day, the following one is due exactly that many dates on."""
    due = slots.due_after(made, interval)
    assert slots.day_of(due) >= slots.day_of(made) + interval
    late = slots.begin_of_day(slots.day_of(due) + DAY) - timedelta(seconds=1)
    assert slots.due_after(late, interval) == slots.due_after(due, interval)


@given(schedules, moments, odd_intervals)
def test_other_intervals_come_later_but_never_too_late(slots: Slots, made: datetime, interval: timedelta) -> None:
    """Due lies after the backup and at most the interval, and the hours a clock may jump, behind it."""
    due = slots.due_after(made, interval)
    assert made < due <= made + interval + DAY + timedelta(hours=2)
    assert slots.slot_of(due, interval) > slots.slot_of(made, interval)


@given(schedules, moments, whole_days | odd_intervals, st.integers(-4000, 4000))
def test_due_only_turns_true_with_time(slots: Slots, made: datetime, interval: timedelta, days: int) -> None:
    """Once a believable backup leaves the source due it stays due, and nothing waits longer than two intervals."""
    now = made + days * DAY
    if slots.is_due(made, interval, now) and made - now <= interval:
        assert slots.is_due(made, interval, now + DAY)
    assert slots.next_due(made, interval, now) <= now + 2 * interval + 2 * DAY
