"""How long a stream will be, before it is made: a guess for people, never for decisions."""

from __future__ import annotations

import os
from dataclasses import dataclass

from b2s.adapters import btrfs
from b2s.core.model import Kind


@dataclass(frozen=True, slots=True)
class StreamEstimate:
    """A guess and what it means."""

    bytes: int | None  # None: nobody knows
    meaning: str = ""


def estimate_stream(source: str, kind: Kind) -> StreamEstimate:
    """Guess from the source's quota group where quota is on, else from what its filesystem holds.

    Of an incremental nothing is known beforehand: `btrfs send --no-data` reads all metadata and counts no data.
    Compressed data is counted as it lies on disk and sent as it reads, so even the filesystem is no strict bound.
    """
    if kind is Kind.INCREMENTAL:
        return StreamEstimate(None)
    referenced = btrfs.referenced_bytes(source)
    if referenced is not None:
        return StreamEstimate(referenced, "about")
    try:
        facts = os.statvfs(source)
    except OSError:
        return StreamEstimate(None)
    return StreamEstimate((facts.f_blocks - facts.f_bfree) * facts.f_frsize, "at most about")
