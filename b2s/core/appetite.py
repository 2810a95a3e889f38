"""How many downloaders a reader is worth. No I/O; the caller has the clock.

A download that is faster than its reader takes CPU away from it, and the first segment comes the sooner the fewer
share the line. So a stream begins with few, and gets more as often as its reader stands still.
"""

from __future__ import annotations

from dataclasses import dataclass

DOWNLOADERS_AT_FIRST = 2
STARVED_SECONDS = 0.1  # of standing still before there are twice as many


@dataclass(slots=True)
class Appetite:
    """One reader's.

    Attributes:
        most: Downloaders there may be, at least 1.
        downloaders: As many as there should be now.
    """

    most: int
    downloaders: int = DOWNLOADERS_AT_FIRST
    _starved_since: float | None = None  # seconds of the caller's clock

    def __post_init__(self) -> None:
        """Begin with no more than there may be."""
        self.downloaders = min(self.most, self.downloaders)

    @property
    def grows(self) -> bool:
        """Tell whether there may be more than now, so that it is worth looking often."""
        return self.downloaders < self.most

    def look(self, now_seconds: float, *, starving: bool) -> int:
        """Take in whether the reader stands still; return how many downloaders there should be."""
        if not starving:
            self._starved_since = None
        elif self._starved_since is None:
            self._starved_since = now_seconds
        elif now_seconds - self._starved_since >= STARVED_SECONDS:
            self.downloaders = min(self.most, 2 * self.downloaders)
            self._starved_since = now_seconds
        return self.downloaders
