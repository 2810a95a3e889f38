"""How many downloaders a reader is worth. No I/O; the caller has the clock.

A download that is faster than its reader takes CPU away from it, and the first segment comes the sooner the fewer
share the line. So a stream begins with few, and gets more as long as its reader stands still too much.
"""

from __future__ import annotations

from dataclasses import dataclass

DOWNLOADERS_AT_FIRST = 2
STARVED_SECONDS = 0.1  # of standing still, in sum, before there are twice as many
STARVED_SHARE = 0.2  # of the time, at least
WINDOW_SECONDS = 5.0  # what was longer ago says nothing about the line as it is now
FIRST_SECONDS = 0.5  # for so long nothing can be expected of a stream that begins


@dataclass(slots=True)
class Appetite:
    """One reader's.

    Attributes:
        most: Downloaders there may be, at least 1.
        downloaders: As many as there should be now.
    """

    most: int
    downloaders: int = DOWNLOADERS_AT_FIRST
    _began: float | None = None  # seconds of the caller's clock, like all of these
    _since: float = 0.0
    _last: float = 0.0
    _starved: float = 0.0  # since then
    _starving: bool = False

    def __post_init__(self) -> None:
        """Begin with no more than there may be."""
        self.downloaders = min(self.most, self.downloaders)

    @property
    def grows(self) -> bool:
        """Tell whether there may be more than now, so that it is worth looking often."""
        return self.downloaders < self.most

    def look(self, now_seconds: float, *, starving: bool, begun: bool) -> int:
        """Return how many downloaders there should be.

        Args:
            now_seconds: Of a clock that never goes back.
            starving: The reader stands still now.
            begun: It has had something to read before.
        """
        if self._began is None:
            self._began = self._since = self._last = now_seconds
        if self._starving:
            self._starved += now_seconds - self._last
        self._last = now_seconds
        self._starving = starving and (begun or now_seconds - self._began >= FIRST_SECONDS)
        elapsed = now_seconds - self._since
        if self._starved >= max(STARVED_SECONDS, STARVED_SHARE * elapsed):
            self.downloaders = min(self.most, 2 * self.downloaders)
        elif elapsed < WINDOW_SECONDS:
            return self.downloaders
        self._since, self._starved = now_seconds, 0.0
        return self.downloaders
