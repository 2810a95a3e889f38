"""The arithmetic of cutting, at its boundaries."""

from __future__ import annotations

import base64
import hashlib

import pytest

from b2s.core.limits import GIB, MIB, TIB
from b2s.core.sizing import (
    SPOOL_SLOTS_MAX,
    SegmentPlace,
    Sizes,
    SpoolPlan,
    StreamCounts,
    composite_sha256,
    memory_bytes_max,
    segment_range,
    spool_slots,
)
from b2s.errors import UsageError


@pytest.mark.parametrize("parts", [9_999, 10_000])
def test_most_parts(parts: int) -> None:
    """The last part that S3 allows fills its chunk, and the segment after it begins the next."""
    sizes = Sizes(5 * MIB, parts * 5 * MIB)
    assert sizes.place(parts - 1) == SegmentPlace(0, parts - 1, parts, True)
    assert sizes.place(parts) == SegmentPlace(1, 0, 1, False)


@pytest.mark.parametrize(
    ("stream", "counts"),
    [
        (0, StreamCounts(0, 0, 0, 0)),
        (1, StreamCounts(1, 1, 1, 1)),
        (9, StreamCounts(1, 1, 9, 9)),
        (10, StreamCounts(1, 1, 10, 10)),
        (11, StreamCounts(1, 2, 11, 1)),
        (29, StreamCounts(1, 3, 29, 9)),
        (30, StreamCounts(1, 3, 30, 10)),
        (31, StreamCounts(2, 4, 1, 1)),
        (60, StreamCounts(2, 6, 30, 10)),
    ],
)
def test_counts(stream: int, counts: StreamCounts) -> None:
    """Exact multiples leave no empty rest, one byte more begins the next."""
    assert Sizes(10, 30).count(stream) == counts


@pytest.mark.parametrize("stream", [1, 10, 29, 30, 31, 95])
def test_places_and_ranges_cover_the_stream(stream: int) -> None:
    """Laid end to end, the ranges of all places are the stream."""
    sizes = Sizes(10, 30)
    offset = 0
    for number in range(sizes.count(stream).segments):
        place = sizes.place(number)
        chunk_start = place.chunk_index * 30
        start, length = segment_range(place.segment_index, 10, min(30, stream - chunk_start))
        assert (chunk_start + start, place.part_number) == (offset, place.segment_index + 1)
        assert length > 0
        offset += length
    assert offset == stream


def test_longest_stream() -> None:
    """The longest stream is bounded by the segments and by the chunks of a manifest."""
    assert Sizes(32 * MIB, 200 * GIB).stream_bytes_max == 32 * TIB
    assert Sizes(5 * MIB, 5 * MIB).stream_bytes_max == 100_000 * 5 * MIB


@pytest.mark.parametrize(
    ("on_disk", "size", "concurrency", "plan"),
    [
        (False, 0, 1, SpoolPlan(3, 30, 1)),
        (False, 0, 4, SpoolPlan(6, 60, 4)),
        (True, 10, 4, SpoolPlan(1, 10, 1)),
        (True, 29, 4, SpoolPlan(2, 20, 1)),
        (True, 30, 4, SpoolPlan(3, 30, 2)),
        (True, 59, 4, SpoolPlan(5, 50, 4)),
        (True, 1000, 4, SpoolPlan(100, 1000, 4)),
        (True, 10**9, 4, SpoolPlan(SPOOL_SLOTS_MAX, SPOOL_SLOTS_MAX * 10, 4)),
    ],
)
def test_spool_plans(on_disk: bool, size: int, concurrency: int, plan: SpoolPlan) -> None:
    """The budget is never exceeded and leaves the chunker a slot where there are two."""
    assert spool_slots(on_disk=on_disk, size_bytes=size, segment_size_bytes=10, concurrency=concurrency) == plan


def test_spool_without_room() -> None:
    """A disk spool smaller than one segment is refused."""
    with pytest.raises(UsageError, match="one segment"):
        spool_slots(on_disk=True, size_bytes=9, segment_size_bytes=10, concurrency=4)


def test_memory_formula() -> None:
    """Slots count in memory only; the stream's length counts by its segments only."""
    plan = SpoolPlan(6, 6 * 32 * MIB, 4)
    in_memory = memory_bytes_max(plan, on_disk=False, segments=0)
    assert in_memory - memory_bytes_max(plan, on_disk=True, segments=0) == plan.budget_bytes
    assert memory_bytes_max(plan, on_disk=False, segments=1000) - in_memory == 1000 * 1024


def test_composite_checksum() -> None:
    """The composite is the base64 of the hash of the parts' hashes, with their number."""
    digests = [hashlib.sha256(text).digest() for text in (b"a", b"b", b"c")]
    expected = base64.b64encode(hashlib.sha256(b"".join(digests)).digest()).decode()
    assert composite_sha256(digests) == f"{expected}-3"
