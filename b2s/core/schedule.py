"""When a source is due: slots anchored at `run_at` in a time zone.

A *slot* is the stretch of time in which one backup belongs. A day's slot begins when the zone's wall clock
first reads `run_at` of that date or later: in a gap of daylight saving that is the first instant after it, in
a doubled hour the first of the two. It lasts until the next date's slot begins, so every moment lies in
exactly one, and days of 23, 25 or 47 hours need no special case.

Intervals count from the slot in which the last backup was made, never from the second it was made:

- `k` whole days: due when the slot of the date `k` days later begins. A backup made at 02:59 on a Sunday
  leaves a weekly source due at 02:00 on the next Sunday; a backup that came two days late, because the host
  was off, is counted from the day on which it came.
- not whole days, `k` days and a remainder `r`: the remainder divides the time since the day's `run_at` into
  slots, and due is `k` dates and one such slot after the slot of the last backup, at the latest when the
  following day begins. So 6 h at `run_at` 02:00 means 02, 08, 14 and 20 o'clock, on every day of the year.

The moment of a backup is its `created_at`, the moment of its snapshot. A moment that lies in the future (the
clock was set back, or was wrong then) is believed as long as it is at most one interval ahead: nothing is made
twice when a clock is two days slow. Further ahead it cannot be right, and waiting for it could mean years
without a backup: due at once, and the new backup, made by today's clock, ends the matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)

# Bounds that keep a hostile manifest or a mad interval from leaving the calendar; no btrfs is older than the first.
EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
LONGEST = 36_525 * DAY


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """One slot of one interval; slots of the same interval compare in the order of time."""

    day: date  # the date whose `run_at` began the day
    index: int  # 0-based within the day; always 0 where the interval is whole days


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots of one schedule.

    Attributes:
        run_at: Wall-clock time at which a day's slot begins.
        zone: The zone of that wall clock; must follow PEP 495 (as `zoneinfo` does).
    """

    run_at: time
    zone: tzinfo

    def begin_of_day(self, day: date) -> datetime:
        """Return the instant (UTC) at which the zone's wall clock first reads `run_at` of `day` or later."""
        wanted = datetime.combine(day, self.run_at.replace(tzinfo=None, fold=0))
        earlier = _instant(wanted, self.zone, fold=0)
        later = _instant(wanted, self.zone, fold=1)
        if earlier <= later:  # an ordinary hour, or the doubled one: fold 0 is its first pass
            return earlier
        # In a gap fold 0 counts with the offset before it and so lies after it; fold 1 lies before it.
        before, after = later, earlier
        while after - before > SECOND:  # zones change on whole seconds
            middle = before + (after - before) // 2 // SECOND * SECOND
            if middle.astimezone(self.zone).replace(tzinfo=None) < wanted:
                before = middle
            else:
                after = middle
        return after

    def day_of(self, moment: datetime) -> date:
        """Return the date whose slot holds this moment."""
        day = moment.astimezone(self.zone).date() + DAY
        while self.begin_of_day(day) > moment:
            day -= DAY
        return day

    def slot_of(self, moment: datetime, interval: timedelta) -> Slot:
        """Return the slot of this interval that holds this moment."""
        day = self.day_of(moment)
        remainder = interval % DAY
        return Slot(day, (moment - self.begin_of_day(day)) // remainder if remainder else 0)

    def due_after(self, made_at: datetime, interval: timedelta) -> datetime:
        """Return when the next backup is due (UTC) after one made at `made_at`, whatever the time is now."""
        interval = min(interval, LONGEST)
        slot = self.slot_of(max(made_at, EARLIEST), interval)
        days, remainder = divmod(interval, DAY)
        due_day = slot.day + days * DAY
        if not remainder:
            return self.begin_of_day(due_day)
        return min(self.begin_of_day(due_day) + (slot.index + 1) * remainder, self.begin_of_day(due_day + DAY))

    def next_due(self, made_at: datetime, interval: timedelta, now: datetime) -> datetime:
        """Return when the next backup is, or was, due (UTC): `now` where `made_at` cannot be believed."""
        if made_at - now > interval:
            return now
        return self.due_after(made_at, interval)

    def is_due(self, made_at: datetime, interval: timedelta, now: datetime) -> bool:
        """Return whether a backup made at `made_at` leaves the next one due by now."""
        return self.next_due(made_at, interval, now) <= now


def _instant(wall: datetime, zone: tzinfo, *, fold: int) -> datetime:
    """Return the UTC instant of a naive wall-clock reading."""
    return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)
