"""How long a retrieval takes, and which tiers there are."""

from __future__ import annotations

import pytest

from b2s.core.retrieval_times import TIERS, retrieval_time, retrieval_times
from b2s.errors import UsageError


@pytest.mark.parametrize(
    ("classes", "tier", "text"),
    [
        (["GLACIER"], "Expedited", "1 to 5 minutes"),
        (["GLACIER"], "Standard", "3 to 5 hours"),
        (["GLACIER", "DEEP_ARCHIVE"], "Standard", "9 to 12 hours"),
        (["INTELLIGENT_TIERING"], "Bulk", "5 to 48 hours"),
        (["DEEP_ARCHIVE"], "Bulk", "24 to 48 hours"),
        (["SOMETHING_NEW"], "Standard", "9 to 12 hours"),
    ],
)
def test_slowest_class_decides(classes: list[str], tier: str, text: str) -> None:
    """The text names the slowest of all classes; an unknown one counts as the slowest there is."""
    assert str(retrieval_time(classes, tier)) == text
    assert tier in TIERS


def test_tier_that_does_not_exist_is_a_usage_error() -> None:
    """DEEP_ARCHIVE has no Expedited."""
    with pytest.raises(UsageError, match="Expedited"):
        retrieval_time(["GLACIER", "DEEP_ARCHIVE"], "Expedited")


def test_only_tiers_that_all_classes_offer() -> None:
    """What can be chosen for a mixed chain is what every class of it has, with the slowest one's hours."""
    assert {tier: str(time) for tier, time in retrieval_times({"GLACIER", "DEEP_ARCHIVE"}).items()} == {
        "Standard": "9 to 12 hours",
        "Bulk": "24 to 48 hours",
    }
    assert set(retrieval_times({"GLACIER"})) == set(TIERS)
