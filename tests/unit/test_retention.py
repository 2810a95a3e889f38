"""Which snapshots go: by age in transactions, never one that is needed."""

from __future__ import annotations

import pytest

from b2s.core.retention import no_longer_needed
from tests.unit.planning import subvolume

OWN = [subvolume(f"s{age}", f"/snapshots/{age}", otransid=100 - age, read_only=True) for age in (2, 0, 3, 1)]


@pytest.mark.parametrize(
    ("needed", "retain", "gone"),
    [
        ({"s0"}, 1, ["s3", "s2", "s1"]),
        ({"s0"}, 2, ["s3", "s2"]),
        ({"s0"}, 4, []),
        ({"s0"}, 9, []),
        ({"s3"}, 1, ["s2", "s1", "s0"]),
        ({"s0", "s3"}, 1, ["s2", "s1"]),
        ({"s0", "s3"}, 3, ["s2"]),
        ({"elsewhere"}, 2, ["s3", "s2"]),
    ],
)
def test_the_oldest_go_and_the_needed_stay(needed: set[str], retain: int, gone: list[str]) -> None:
    """As many as `retain` stay, what is needed among them; the oldest go first."""
    assert [facts.uuid for facts in no_longer_needed(OWN, needed, retain)] == gone


def test_nothing_of_nothing() -> None:
    """No snapshots, nothing to delete."""
    assert no_longer_needed([], {"s0"}, 1) == []
