"""Sizes, rates and durations."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from b2s.core.units import exact_size, format_bytes, format_duration, format_rate, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1", 1), ("32MiB", 32 * 1024**2), ("1.5 GB", 1_500_000_000), ("5tib", 5 * 1024**4), ("7B", 7)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    """A number with or without a unit is bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "10XB", "1.5", "0.1B", "1e3", "１", "1 000", "9" * 41, "1MiB ", "nan"]
)
def test_other_sizes_are_refused(text: str) -> None:
    """Everything else is a ValueError."""
    with pytest.raises(ValueError, match="not a"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("90m", 5400), ("7d", 604800), ("1h30m", 5400), ("2w", 1209600), ("500ms", 0.5)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    """Whole numbers with units add up."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "7", "-7d", "7 d", "1.5h", "1y", "d", "7D", "9999999999d", "１d"])
def test_other_durations_are_refused(text: str) -> None:
    """Everything else is a ValueError."""
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=2**62))
def test_exact_sizes_read_back(size: int) -> None:
    """No byte is lost by writing a size and reading it."""
    assert parse_size(exact_size(size)) == size


@given(st.integers(min_value=0, max_value=10**12))
def test_durations_read_back(milliseconds: int) -> None:
    """No millisecond is lost by writing a duration and reading it."""
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(duration)) == duration


@given(st.floats(min_value=0, max_value=1e20))
def test_rates_are_below_a_thousand(rate: float) -> None:
    """The number of a throughput never has four digits before the point."""
    number, unit = format_rate(rate).split(" ")
    assert float(number) < 1000
    assert unit.endswith("B/s")


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, "0 B/s"), (999, "999 B/s"), (999.96, "1.0 kB/s"), (412_700_000, "412.7 MB/s"), (999_960_000, "1.0 GB/s")],
)
def test_rates_step_to_the_next_unit(rate: float, text: str) -> None:
    """Rounding up to 1000 takes the next unit."""
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (432_747_315, "412.7 MiB"), (1048575, "1.0 MiB")],
)
def test_bytes_are_shown_with_binary_units(size: int, text: str) -> None:
    """The number stays below 1024."""
    assert format_bytes(size) == text


def test_ages_are_short() -> None:
    """A float counts seconds, and fractions vanish from a minute on."""
    assert format_duration(93784.4) == "1d2h3m4s"
    assert format_duration(0.25) == "250ms"
    assert format_duration(0) == "0s"
