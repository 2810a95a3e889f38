"""When the chunker hashes for the uploaders."""

from __future__ import annotations

import pytest

from b2s.core.leisure import PAUSE_SEGMENTS, Leisure


@pytest.mark.parametrize(
    ("trusted", "segment_number", "in_flight", "wanted"),
    [
        (True, 0, 0, True),  # what resumes: only compared
        (True, 2, 3, True),
        (True, 3, 1, False),  # new, and somebody else hashes meanwhile
        (True, 3, 0, True),  # new, and nobody has anything to do
        (False, 0, 0, False),  # it would be hashed again in any case
    ],
)
def test_hashes_where_nobody_else_would(trusted: bool, segment_number: int, in_flight: int, wanted: bool) -> None:
    """Three segments were stored before."""
    assert Leisure(trusted, known_segments=3).for_hashing(segment_number, in_flight=in_flight) is wanted


def test_who_holds_the_others_up_leaves_it_to_them_for_a_while() -> None:
    """A chunker that computes all the time is slower than `btrfs send`; it tries again later."""
    leisure = Leisure(trusted=True, known_segments=0)
    leisure.hashed(1.0, 0.5)
    assert leisure.for_hashing(0, in_flight=0)
    leisure.hashed(1.0, 0.95)
    assert [leisure.for_hashing(n, in_flight=0) for n in range(PAUSE_SEGMENTS + 1)] == [False] * PAUSE_SEGMENTS + [True]
