"""One bandwidth limit that several processes share, without a process in the middle.

A small file holds the moment at which the line is free again. Who wants to send moves it forward by what that
takes, under a record lock, and then waits for its turn. The kernel drops the lock when its holder is killed, so
nobody can be left hanging; what a killed process had reserved is lost, a few milliseconds of the line.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from b2s.adapters.retry import STOP_POLL_SECONDS, never_stop

_MOMENT = struct.Struct("<d")

SLICE_SECONDS = 0.05  # one reservation: short, so that several senders share the line smoothly
SLICE_BYTES_MIN = 4 * 1024
SLICE_BYTES_MAX = 1024 * 1024

# CLOCK_MONOTONIC counts from boot and is the same in all processes. A moment further off than any honest queue
# of senders could make it is left over from another boot, or garbage.
RESERVED_SECONDS_MAX = 3600.0


class Bandwidth:
    """A limit in bytes a second, shared by every process that opens the same path.

    Build it in each process (it holds a file descriptor of its own); close it at the end.
    """

    def __init__(
        self,
        path: Path,
        bytes_per_second: int,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if bytes_per_second <= 0:
            raise ValueError("bytes_per_second must be positive")
        self.path = path
        self.bytes_per_second = bytes_per_second
        self._monotonic = monotonic
        self._sleep = sleep
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    @property
    def slice_bytes(self) -> int:
        """Return how much to take and send at a time."""
        return max(SLICE_BYTES_MIN, min(SLICE_BYTES_MAX, int(self.bytes_per_second * SLICE_SECONDS)))

    def take(self, bytes_count: int, stop: Callable[[], None] = never_stop) -> float:
        """Wait until `bytes_count` bytes may be sent.

        Args:
            bytes_count: At most about `slice_bytes`, or others wait long for their turn.
            stop: Called while waiting; raises to give up.

        Returns:
            The seconds waited.
        """
        turn_at = self._reserve(bytes_count)
        waited = 0.0
        while (remaining := turn_at - self._monotonic()) > 0:
            stop()
            seconds = min(remaining, STOP_POLL_SECONDS)
            self._sleep(seconds)
            waited += seconds
        return waited

    def close(self) -> None:
        """Close the file; it is left to whoever owns its directory."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _reserve(self, bytes_count: int) -> float:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            now = self._monotonic()
            stored = os.pread(self._fd, _MOMENT.size, 0)
            free_at = _MOMENT.unpack(stored)[0] if len(stored) == _MOMENT.size else now
            if not now <= free_at <= now + RESERVED_SECONDS_MAX:  # in the past, absurd, or NaN
                free_at = now
            os.pwrite(self._fd, _MOMENT.pack(free_at + bytes_count / self.bytes_per_second), 0)
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)
        return float(free_at)
