"""What this machine has left: memory, and room on a filesystem that may be memory."""

from __future__ import annotations

from pathlib import Path

import psutil


def available_bytes() -> int:
    """Return the memory that can be taken now without swapping."""
    return int(psutil.virtual_memory().available)


def spool_room_bytes(parent: Path) -> int:
    """Return how much a spool in memory may take now: what its filesystem and the machine have both free."""
    return min(int(psutil.disk_usage(str(parent)).free), available_bytes())
