"""When a source is overdue, and what `status` says of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from b2s.adapters.state import Outcome
from b2s.backup.status import SourceStatus, StatusReport, grace_of
from b2s.core.world import HeadChain, Health
from tests.unit.planning import BERLIN, DAY, NOW, backup, begun, rhythm, weekly_chain

HOUR = timedelta(hours=1)
LAST = datetime(2026, 6, 7, 2, 9, tzinfo=BERLIN)  # the next slot begins on the 14th at 02:00


def status(now: datetime, **changes: Any) -> SourceStatus:
    """Return the status of a weekly source whose last backup was made on the 7th."""
    chain = HeadChain.of(weekly_chain(3, LAST), Health.UNCHECKED)
    default = SourceStatus("data", now, rhythm(), chain, 3000, None, None, None)
    return replace(default, **changes)


def at(text: str) -> datetime:
    """Return a moment in Berlin."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("interval", "grace"),
    [(HOUR, HOUR), (12 * HOUR, 12 * HOUR), (DAY, DAY), (7 * DAY, DAY), (30 * DAY, 3 * DAY), (180 * DAY, 18 * DAY)],
)
def test_grace(interval: timedelta, grace: timedelta) -> None:
    """The interval itself, at most a day, of long ones a tenth."""
    assert grace_of(interval) == grace


@pytest.mark.parametrize(
    ("now", "overdue"),
    [("2026-06-13T12:00", False), ("2026-06-14T03:00", False), ("2026-06-15T02:00", False), ("2026-06-15T02:01", True)],
)
def test_a_weekly_source_is_overdue_a_day_after_its_slot(now: str, overdue: bool) -> None:
    """Due on Sunday at 02:00, overdue from Monday 02:00 on."""
    assert status(at(now)).overdue is overdue
    assert status(at(now)).next_due == at("2026-06-14T02:00")


def test_a_late_full_is_overdue_although_incrementals_are_made() -> None:
    """A full may wait for a tenth of its interval, for the weekly call of cron, not longer."""
    full = backup(1, at("2025-12-01T02:00"))
    chain = HeadChain.of([full, backup(2, LAST, full)], Health.UNCHECKED)
    assert not status(at("2026-06-08T02:00"), chain=chain).overdue
    assert status(at("2026-06-08T02:00"), chain=chain).next_due == at("2026-05-30T02:00")
    fresh = HeadChain(backup(9, at("2026-06-20T02:00"), full), full, 9, Health.UNCHECKED)
    assert status(at("2026-06-20T03:00"), chain=fresh).overdue


def test_never_backed_up_is_overdue() -> None:
    """No backup is the worst age of all."""
    shown = status(NOW, chain=None, chain_bytes=0).document()
    assert (shown["overdue"], shown["last_backup"], shown["age_seconds"], shown["chain_length"]) == (
        True,
        None,
        None,
        0,
    )
    assert shown["next_due"] == NOW.isoformat()


def test_found_unchanged_counts_as_backed_up() -> None:
    """A source that was looked at in its slot and had nothing new is not overdue."""
    late = at("2026-06-16T02:00")
    assert not status(late, unchanged_at=at("2026-06-14T02:05")).overdue


def test_the_document_tells_all() -> None:
    """Age, chain, what is interrupted and how far, the last error."""
    now = at("2026-06-14T02:09")
    shown = status(
        now,
        interrupted=begun(backup(4, now)),
        outcome=Outcome(now, False, "S3 is gone", "wait"),
    ).document()
    assert shown["age_seconds"] == 7 * 86400
    assert (shown["chain_length"], shown["chain_bytes"]) == (3, 3000)
    assert shown["interrupted"]["stored_bytes"] == 0
    assert set(shown["interrupted"]) == {"backup_id", "kind", "created_at", "stored_bytes"}, (
        "as docs/monitoring.md says"
    )
    assert (shown["last_error"], shown["hint"]) == ("S3 is gone", "wait")
    assert status(now, outcome=Outcome(now, True, None, None)).document()["last_error"] is None
    assert status(now, problem="no answer").document()["last_error"] == "no answer"
    assert StatusReport((status(now),)).document()["sources"][0]["source"] == "data"


def test_a_clock_set_back_shows_no_negative_age() -> None:
    """A last backup in the future is zero seconds old."""
    assert status(LAST - DAY).document()["age_seconds"] == 0
