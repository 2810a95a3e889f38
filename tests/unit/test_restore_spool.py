"""How many slots a restore's spool gets, whatever a manifest says of segments."""

from __future__ import annotations

from pathlib import Path

import pytest

from b2s.core.store_settings import S3Settings
from b2s.errors import SpoolFull
from b2s.restore.pipeline import DownloadPlan, spool_slots

MIB = 1 << 20


def plan(slot_bytes: int, segments: int = 1000, concurrency: int = 4) -> DownloadPlan:
    """Return a plan of this segment size."""
    return DownloadPlan(S3Settings(bucket="bucket"), concurrency, Path("/dev/shm"), slot_bytes, segments)


@pytest.mark.parametrize(
    ("slot_mib", "free_mib", "segments", "slots"),
    [(32, 10_000, 1000, 6), (32, 10_000, 3, 3), (32, 10_000, 1, 1), (32, 100, 1000, 2), (32, 130, 1000, 3)],
)
def test_slots_follow_concurrency_memory_and_segments(slot_mib: int, free_mib: int, segments: int, slots: int) -> None:
    """`concurrency + 2`, fewer where four fifths of the free memory or the segments themselves are fewer."""
    assert spool_slots(plan(slot_mib * MIB, segments), free_mib * MIB) == slots


def test_segments_that_do_not_fit_are_refused_with_a_cure() -> None:
    """Segments of 5 GiB on a host with 8 GiB free end in an error that says what to do."""
    with pytest.raises(SpoolFull, match=r"5\.0 GiB") as caught:
        spool_slots(plan(5 << 30), 8 << 30)
    assert "remount" in (caught.value.hint or "")
