"""Points in time as people write them after `--at`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from b2s.cli.restore import moment_from


@pytest.fixture
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The zone of the host."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("zone", "text", "utc"),
    [
        ("UTC", "2026-11-30", "2026-11-30 00:00:00"),
        ("UTC", "2026-11-30T02:00", "2026-11-30 02:00:00"),
        ("UTC", "2026-11-30T02:00:59.5", "2026-11-30 02:00:59.500000"),
        ("America/New_York", "2026-11-30", "2026-11-30 05:00:00"),
        ("America/New_York", "2026-11-30T02:00Z", "2026-11-30 02:00:00"),
        ("America/New_York", "2026-11-30T02:00+05:30", "2026-11-29 20:30:00"),
        ("America/New_York", "2026-11-30 02:00:00 UTC", "2026-11-30 02:00:00"),
        ("America/New_York", "2026-11-30 02:00:00 EST", "2026-11-30 07:00:00"),
        ("Europe/Berlin", "2026-10-25 01:59:59", "2026-10-24 23:59:59"),
        ("Europe/Berlin", "2026-10-25 03:00", "2026-10-25 02:00:00"),
        ("Europe/Berlin", " 2026-07-01 ", "2026-06-30 22:00:00"),
    ],
    indirect=["zone"],
)
def test_moments(zone: None, text: str, utc: str) -> None:
    """Local time where no zone is given; a date is its midnight; what `b2s list` prints is taken as well."""
    assert str(moment_from(text).astimezone(UTC).replace(tzinfo=None)) == utc


@pytest.mark.parametrize("zone", ["Europe/Berlin"], indirect=True)
@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2026-11-30 25:00", "0001-01-01T00:00", "02:00 UTC"])
def test_no_moments(zone: None, text: str) -> None:
    """What is no time is refused with what is allowed."""
    with pytest.raises(ValueError, match="write 2026-11-30"):
        moment_from(text)


@pytest.mark.parametrize("zone", ["Asia/Kolkata"], indirect=True)
def test_as_list_prints_it(zone: None) -> None:
    """A time copied from `b2s list` means that very backup."""
    from b2s.cli.list import _to_the_second

    created_at = datetime(2026, 11, 22, 1, 0, 7, tzinfo=UTC)
    assert moment_from(_to_the_second(created_at.isoformat())) == created_at
