"""How long archive classes take to give their objects back, by tier."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from b2s.errors import UsageError

TIERS = ("Expedited", "Standard", "Bulk")

# Hours until an object can be read, from and to. Source: Amazon S3 User Guide, "Understanding archive retrieval
# options" (read 2026-11). Intelligent-Tiering counts as its deepest tier: HEAD does not always say which it is.
_HOURS: dict[str, dict[str, tuple[float, float]]] = {
    "GLACIER": {"Expedited": (1 / 60, 5 / 60), "Standard": (3, 5), "Bulk": (5, 12)},
    "DEEP_ARCHIVE": {"Standard": (9, 12), "Bulk": (24, 48)},
    "INTELLIGENT_TIERING": {"Standard": (3, 12), "Bulk": (5, 48)},
}


@dataclass(frozen=True, slots=True)
class RetrievalTime:
    """How long a retrieval roughly takes."""

    hours_min: float
    hours_max: float

    def __str__(self) -> str:
        """Return it for people: `9 to 12 hours`, `1 to 5 minutes`."""
        if self.hours_max < 1:
            return f"{self.hours_min * 60:.0f} to {self.hours_max * 60:.0f} minutes"
        return f"{self.hours_min:.0f} to {self.hours_max:.0f} hours"


def retrieval_times(storage_classes: Collection[str]) -> dict[str, RetrievalTime]:
    """Return how long a retrieval of objects in all these classes takes, by each tier that all of them offer.

    The slowest class decides; unknown ones count as the slowest there is.
    """
    times: dict[str, RetrievalTime] = {}
    offers = [_offered(storage_class) for storage_class in storage_classes]
    for tier in TIERS:
        spans = [offer[tier] for offer in offers if tier in offer]
        if spans and len(spans) == len(offers):
            times[tier] = RetrievalTime(max(low for low, _ in spans), max(high for _, high in spans))
    return times


def retrieval_time(storage_classes: Collection[str], tier: str) -> RetrievalTime:
    """Return how long it takes with one tier.

    Raises:
        UsageError: One of the classes does not offer this tier.
    """
    for storage_class in sorted(set(storage_classes)):
        if tier not in _offered(storage_class):
            raise UsageError(
                f"the storage class {storage_class} has no retrieval tier {tier}",
                hint=f"choose --tier {' or '.join(_offered(storage_class))}",
            )
    return retrieval_times(storage_classes)[tier]


def _offered(storage_class: str) -> dict[str, tuple[float, float]]:
    return _HOURS.get(storage_class, _HOURS["DEEP_ARCHIVE"])
