"""The progress line: what it says, and what fits."""

from __future__ import annotations

import io

from rich.console import Console

from b2s.cli.progress import progress_line
from b2s.core.limits import MIB
from b2s.core.progress_meter import ProgressMeter


class Ticking:
    """A clock that goes on when told."""

    def __init__(self) -> None:
        """Begin at some time."""
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def meter_at(seconds: float, stored: int, total: int | None, meaning: str = "") -> ProgressMeter:
    """Return a meter after so many seconds and bytes."""
    clock = Ticking()
    meter = ProgressMeter(clock)
    meter.begin("data", "full", total, meaning)
    meter.moved(0)
    clock.now += seconds
    meter.stored(stored, reused=False)
    return meter


def line(meter: ProgressMeter, width: int) -> str:
    """Return the line as a terminal of this width shows it."""
    return progress_line(meter, Console(width=width, file=io.StringIO())).plain


def test_says_bytes_rate_and_time_left() -> None:
    """A stream of known length tells amount, share, rate and time left; the guess is called one."""
    meter = meter_at(10, 100 * MIB, 400 * MIB, "at most about")
    meter.spooled(3, 6)
    meter.retried()
    assert meter.words() == [
        "data: full",
        "100.0 MiB of at most about 400.0 MiB (25 %)",
        "10.5 MB/s",
        "at most about 30s left",
        "spool 3/6",
        "1 retry",
    ]


def test_unknown_total_promises_nothing() -> None:
    """Without a total there is no share and no time left; with one that proves wrong neither."""
    assert meter_at(10, 100 * MIB, None).words() == ["data: full", "100.0 MiB", "10.5 MB/s"]
    assert meter_at(10, 100 * MIB, 50 * MIB, "about").words() == ["data: full", "100.0 MiB", "10.5 MB/s"]


def test_early_rate_is_not_told() -> None:
    """In the first seconds nobody knows the rate."""
    assert meter_at(1, 100 * MIB, 400 * MIB).words() == ["data: full", "100.0 MiB of 400.0 MiB (25 %)"]


def test_bytes_under_way_count_once() -> None:
    """What moved counts before it is reported as stored, and not again afterwards; what moves twice is not believed."""
    meter = meter_at(10, 5 * MIB, 100 * MIB)
    meter.spooled(1, 6)
    meter.moved(2 * MIB)
    assert meter.done_bytes == 7 * MIB
    meter.moved(3 * MIB)
    meter.stored(5 * MIB, reused=False)
    assert meter.done_bytes == 10 * MIB
    for _ in range(10):
        meter.moved(5 * MIB)
    assert meter.done_bytes == 15 * MIB


def test_counts_what_has_no_bytes() -> None:
    """Archived chunks are counted; a stream that follows shows bytes again."""
    meter = ProgressMeter(Ticking())
    meter.counted("data", "thaw", 3, 12)
    assert meter.words() == ["data: thaw", "3 of 12"]
    meter.begin("data", "restore", 10)
    assert meter.words() == ["data: restore", "0 B of 10 B (0 %)"]


def test_never_wider_than_the_terminal() -> None:
    """At every width the line fits; the most important stays longest."""
    meter = meter_at(10, 100 * MIB, 400 * MIB, "at most about")
    meter.source = "a-source-with-a-rather-long-name"
    meter.spooled(3, 6)
    for width in range(10, 200):
        shown = line(meter, width)
        assert len(shown) < width
        assert shown.startswith("a-source"[: width - 2])
    assert "━" in line(meter, 170)
    assert line(meter, 80) == "a-source-with-a-rather-long-name: full  10.5 MB/s  at most about 30s left"


def test_control_characters_do_not_reach_the_terminal() -> None:
    """A name with an escape sequence is shown as one."""
    meter = meter_at(10, 1, 10)
    meter.source = "a\x1b[2J\nb"
    assert "\\x1b[2J\\nb" in line(meter, 120)
