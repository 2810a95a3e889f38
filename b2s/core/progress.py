"""Where a command tells how far it is; a terminal shows it, cron hears nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class ProgressSink(Protocol):
    """Someone who watches bytes move, from one thread."""

    def begin(self, source: str, doing: str, total_bytes: int | None, total_is: str = "") -> None:
        """Begin a stream.

        Args:
            source: Its source.
            doing: What is done with it, for people: "full", "restore", ...
            total_bytes: What it will come to; None: nobody knows.
            total_is: What the total means ("about", "at most about"); empty: exactly that.
        """

    def moved(self, count: int) -> None:
        """Count bytes on the wire."""

    def stored(self, count: int, *, reused: bool) -> None:
        """Count bytes of the stream that are where they belong."""

    def spooled(self, slots_used: int, slots: int) -> None:
        """Tell how full the spool is."""

    def retried(self) -> None:
        """Count a call that was tried again."""

    def counted(self, source: str, doing: str, done: int, total: int) -> None:
        """Tell how many of something are done, where no bytes move: archived chunks, chunks looked at."""

    def end(self) -> None:
        """End the stream, or the counting."""


class NoProgress:
    """Watches nothing."""

    def begin(self, source: str, doing: str, total_bytes: int | None, total_is: str = "") -> None:
        """Ignore it."""

    def moved(self, count: int) -> None:
        """Ignore it."""

    def stored(self, count: int, *, reused: bool) -> None:
        """Ignore it."""

    def spooled(self, slots_used: int, slots: int) -> None:
        """Ignore it."""

    def retried(self) -> None:
        """Ignore it."""

    def counted(self, source: str, doing: str, done: int, total: int) -> None:
        """Ignore it."""

    def end(self) -> None:
        """Ignore it."""


@contextmanager
def ending(sink: ProgressSink) -> Iterator[None]:
    """End what was begun, however the block ends."""
    try:
        yield
    finally:
        sink.end()
