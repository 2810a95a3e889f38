"""Sizes, rates and durations as people write and read them."""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction

import durationpy

SIZE_GRAMMAR = "a number of bytes, or a number and a unit: B, KB, MB, GB, TB (1000), KiB, MiB, GiB, TiB (1024)"
DURATION_GRAMMAR = "whole numbers with units ms, s, m, h, d or w, for example 90m, 7d or 1h30m"

_TEXT_LENGTH_MAX = 40  # longer texts are refused before any arithmetic
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", re.ASCII)
_SIZE_UNITS = {"": 1, "b": 1} | {
    unit: base**power
    for power, letter in enumerate("kmgt", start=1)
    for unit, base in ((f"{letter}b", 1000), (f"{letter}ib", 1024))
}
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:ms|s|m|h|d|w))+", re.ASCII)
_DURATION_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_DECIMAL_UNITS = ("B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s", "EB/s")


def parse_size(text: str) -> int:
    """Return the bytes that a size such as `32MiB` or `1.5 GB` means.

    Raises:
        ValueError: It is no size, or not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text) if len(text) <= _TEXT_LENGTH_MAX else None
    unit_bytes = _SIZE_UNITS.get(match[2].lower()) if match else None
    if match is None or unit_bytes is None:
        raise ValueError(f"not a size; write {SIZE_GRAMMAR}")
    size_bytes = Fraction(match[1]) * unit_bytes
    if size_bytes.denominator != 1:
        raise ValueError("not a whole number of bytes")
    return int(size_bytes)


def exact_size(size_bytes: int) -> str:
    """Return the shortest text that `parse_size` turns into exactly these bytes."""
    for power in range(4, 0, -1):
        if size_bytes and size_bytes % 1024**power == 0:
            return f"{size_bytes // 1024**power}{_BINARY_UNITS[power]}"
    return f"{size_bytes}B"


def parse_duration(text: str) -> timedelta:
    """Return the time that a duration such as `7d` or `1h30m` means.

    Raises:
        ValueError: It is no duration.
    """
    if len(text) > _TEXT_LENGTH_MAX or not _DURATION.fullmatch(text):
        raise ValueError(f"not a duration; write {DURATION_GRAMMAR}")
    parsed: timedelta = durationpy.from_str(text)
    return parsed


def format_duration(duration: timedelta | float) -> str:
    """Return a duration (a float counts seconds) as text, `1d2h` or `1h30m5s`; `parse_duration` reads it back.

    Milliseconds are shown below one minute only, so that ages and estimates stay short.
    """
    exact = duration if isinstance(duration, timedelta) else timedelta(seconds=duration)
    rest = round(abs(exact) / timedelta(milliseconds=1))
    if rest >= 60_000 and not isinstance(duration, timedelta):
        rest = round(rest / 1000) * 1000
    text = "-" if exact < timedelta() else ""
    for unit, milliseconds in _DURATION_UNITS:
        count, rest = divmod(rest, milliseconds)
        text += f"{count}{unit}" if count else ""
    return text if text not in ("", "-") else "0s"


def format_roughly(seconds: float) -> str:
    """Return an age or a time left as text, no finer than anybody cares: `1d2h`, `1h30m`, `9m30s`."""
    unit = 1 if seconds < 600 else 60 if seconds < 86_400 else 3600
    return format_duration(timedelta(seconds=round(seconds / unit) * unit))


def format_bytes(size_bytes: int) -> str:
    """Return bytes for people, such as `412.7 MiB`; the number is below 1024."""
    return _scaled(size_bytes, 1024, _BINARY_UNITS)


def format_rate(bytes_per_second: float) -> str:
    """Return a rate for people, such as `412.7 MB/s`; the number is below 1000."""
    return _scaled(bytes_per_second, 1000, _DECIMAL_UNITS)


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    for unit in units:
        digits = 0 if unit == units[0] and value == int(value) else 1
        shown = f"{value:.{digits}f}"
        if abs(float(shown)) < base or unit == units[-1]:
            return f"{shown} {unit}"
        value /= base
    raise AssertionError("unreachable")
