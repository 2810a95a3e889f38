"""The time, as something that can be handed in."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What b2s asks of time."""

    def now(self) -> datetime:
        """Return the wall clock as aware UTC: for facts, never for durations."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never jump: for durations and deadlines."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def now(self) -> datetime:
        """Return the wall clock as aware UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that never jump."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class FakeClock:
    """A clock for tests: it moves only when it is told to, or when someone sleeps on it."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> datetime:
        """Return the pretended wall clock."""
        return self._now

    def monotonic(self) -> float:
        """Return the pretended seconds."""
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        """Let both clocks go on by this much."""
        self._monotonic += seconds
        self._now += timedelta(seconds=seconds)
