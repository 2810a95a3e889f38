"""How far a stream is, in words: bytes, rate, time left, spool, retries."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import timedelta

from b2s.core.units import format_bytes, format_rate, format_roughly

WINDOW_SECONDS = 30.0  # over which the rate is taken
SAMPLE_SECONDS = 1.0
RATE_SECONDS_MIN = 3.0  # a rate over less is a guess
LEFT_MAX = timedelta(days=365)


class ProgressMeter:
    """A `ProgressSink` that adds up. Read it from any thread; numbers are at most one report old."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.active = False
        self._begun("", "")

    def _begun(self, source: str, doing: str) -> None:
        self.source = source
        self.doing = doing
        self.total_bytes: int | None = None
        self._total_is = ""
        self._stored = 0
        self._under_way = 0  # moved, and not yet reported as stored
        self._largest = 0
        self._slots: tuple[int, int] | None = None
        self._count: tuple[int, int] | None = None
        self._retries = 0
        self._samples: deque[tuple[float, int]] = deque()

    def begin(self, source: str, doing: str, total_bytes: int | None, total_is: str = "") -> None:
        """Begin a stream."""
        self._begun(source, doing)
        self.total_bytes = total_bytes or None
        self._total_is = total_is
        self.active = True

    def moved(self, count: int) -> None:
        """Count bytes on the wire."""
        self._under_way += count
        self._sample()

    def stored(self, count: int, *, reused: bool) -> None:
        """Count bytes of the stream that are where they belong."""
        self._stored += count
        self._largest = max(self._largest, count)
        if not reused:
            self._under_way = max(0, self._under_way - count)
        self._sample()

    def spooled(self, slots_used: int, slots: int) -> None:
        """Tell how full the spool is."""
        self._slots = (slots_used, slots)

    def retried(self) -> None:
        """Count a call that was tried again."""
        self._retries += 1

    def counted(self, source: str, doing: str, done: int, total: int) -> None:
        """Tell how many of something are done."""
        if not self.active or (self.source, self.doing) != (source, doing):
            self._begun(source, doing)
            self.active = True
        self._count = (done, total)

    def end(self) -> None:
        """End the stream, or the counting."""
        self.active = False

    @property
    def done_bytes(self) -> int:
        """Return the bytes that are done, with those of segments under way as far as one may believe them.

        Bytes that are sent twice move twice: no more are believed than the spool can hold.
        """
        used = self._slots[0] if self._slots else 1
        return self._stored + min(self._under_way, max(1, used) * self._largest or self._under_way)

    @property
    def share(self) -> float | None:
        """Return how much of the total is done, 0 to 1; None when there is no total to believe in."""
        if self._count is not None:
            return self._count[0] / self._count[1] if self._count[1] else None
        if self.total_bytes is None or self.done_bytes > self.total_bytes:
            return None
        return self.done_bytes / self.total_bytes

    @property
    def rate(self) -> float | None:
        """Return bytes per second of late; None when it is too early to say."""
        if not self._samples:
            return None
        began, before = self._samples[0]
        elapsed = self._monotonic() - began
        return (self.done_bytes - before) / elapsed if elapsed >= RATE_SECONDS_MIN else None

    def words(self) -> list[str]:
        """Return what there is to say, the most important first."""
        if self._count is not None:
            return [f"{self.source}: {self.doing}", f"{self._count[0]} of {self._count[1]}"]
        words = [f"{self.source}: {self.doing}", self._amount()]
        rate = self.rate
        if rate is not None:
            words.append(format_rate(max(0.0, rate)))
            words += self._left(rate)
        if self._slots is not None:
            words.append(f"spool {self._slots[0]}/{self._slots[1]}")
        if self._retries:
            words.append("1 retry" if self._retries == 1 else f"{self._retries} retries")
        return words

    def _amount(self) -> str:
        share = self.share
        done = format_bytes(self.done_bytes)
        if share is None or self.total_bytes is None:
            return done
        total = f"{self._total_is} {format_bytes(self.total_bytes)}".strip()
        return f"{done} of {total} ({int(share * 100)} %)"

    def _left(self, rate: float) -> list[str]:
        if self.share is None or self.total_bytes is None or rate <= 0:
            return []
        seconds = (self.total_bytes - self.done_bytes) / rate
        if seconds > LEFT_MAX.total_seconds():
            return []
        return [f"{self._total_is} {format_roughly(seconds)} left".strip()]

    def _sample(self) -> None:
        now = self._monotonic()
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now, self.done_bytes))
        while len(self._samples) > 2 and now - self._samples[0][0] > WINDOW_SECONDS:
            self._samples.popleft()
