"""The synthetic stream is a real one, of any length."""

from __future__ import annotations

import itertools
import subprocess

import pytest

from b2s.core.limits import KIB, MIB
from b2s.core.stream import END_HEADER, StreamFrames
from scripts.bench.synthetic_stream import command, pieces

SIZES = (200, 1000, 50_000, MIB, MIB + 3 * 48 * KIB + 7, 5 * MIB)


@pytest.mark.parametrize("size", SIZES)
def test_stream_is_whole_and_as_long_as_asked(size: int) -> None:
    """Every length is met to the byte, and btrfs itself accepts all commands and their CRCs."""
    stream = b"".join(pieces(size))
    assert len(stream) == size
    frames = StreamFrames()
    frames.feed(memoryview(stream))
    assert frames.finish().whole
    done = subprocess.run(["btrfs", "receive", "--dump"], input=stream, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_stream_is_deterministic_and_never_repeats() -> None:
    """The same arguments give the same bytes, and no two blocks with their counters are alike."""
    first, second = (list(itertools.islice(pieces(1 << 40), 9)) for _ in range(2))
    assert first == second
    assert len({first[n] for n in range(2, 9, 2)}) == 4


def test_end_is_the_one_b2s_looks_for() -> None:
    """The CRC is computed like the kernel does."""
    assert command(21) == END_HEADER
