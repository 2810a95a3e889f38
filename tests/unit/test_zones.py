"""Zones by name, and the machine's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from zoneinfo import ZoneInfo

import pytest

from b2s.adapters.zones import zone
from b2s.core.schedule import Slots
from b2s.errors import ConfigError


@pytest.fixture
def machine_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let a test set TZ, and put the C library's zone back afterwards."""
    with monkeypatch.context() as patch:
        yield patch
    time.tzset()


@pytest.mark.parametrize("name", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"])
def test_local_is_the_machines_zone_with_all_its_rules(machine_zone: pytest.MonkeyPatch, name: str) -> None:
    """Under TZ=name, "local" begins every day of two years where the named zone does."""
    machine_zone.setenv("TZ", name)
    time.tzset()
    for run_at in ("00:00", "01:45", "02:15", "02:30"):
        local = Slots(time_of_day.fromisoformat(run_at), zone("local"))
        named = Slots(time_of_day.fromisoformat(run_at), ZoneInfo(name))
        for offset in range(730):
            day = date(2026, 1, 1) + timedelta(days=offset)
            assert local.begin_of_day(day) == named.begin_of_day(day)


def test_local_follows_posix_rules(machine_zone: pytest.MonkeyPatch) -> None:
    """TZ may hold rules instead of a name, which only the C library reads."""
    machine_zone.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    local = zone("local")
    assert datetime(2026, 7, 1, 12, tzinfo=UTC).astimezone(local).hour == 14
    assert local.tzname(None) == "local"
    assert local.dst(None) is None
    assert local.utcoffset(None) is None


def test_a_named_zone_is_looked_up() -> None:
    """An IANA name gives that zone."""
    assert datetime(2026, 7, 1, 12, tzinfo=UTC).astimezone(zone("Asia/Kolkata")).minute == 30


@pytest.mark.parametrize("name", ["Europe/Berlim", "../etc/passwd", "", "a\0b"])
def test_an_unknown_zone_is_a_config_error(name: str) -> None:
    """A name that is no zone ends as an error of the config, not as a trace."""
    with pytest.raises(ConfigError, match="time zone"):
        zone(name)
