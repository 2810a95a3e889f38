"""Whether the chunker is to hash what it reads for the uploaders. No I/O; the caller has the clocks.

Bytes that were just read are hashed for less than bytes that have to be fetched from memory again, and where uploaders
have nothing else to do their segment is stored sooner. But there are many uploaders and one chunker, so it may only do
so while it waits for `btrfs send` all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

BUSY_SHARE = 0.9  # of the time a segment took; whoever computes for so much of it is what the others wait for
PAUSE_SEGMENTS = 8


@dataclass(slots=True)
class Leisure:
    """One chunker's.

    Attributes:
        trusted: The store compares the hash with what arrives; else the uploader computes it again in any case.
        known_segments: So many at the beginning of the stream were stored by an earlier run, or most of them: all
            there is to do is to compare their hashes.
    """

    trusted: bool
    known_segments: int
    _pause: int = 0  # segments until it is tried again

    def for_hashing(self, segment_number: int, *, in_flight: int) -> bool:
        """Tell, once for each segment of the stream, whether to hash it while it is read.

        Args:
            segment_number: Counted from 0.
            in_flight: Segments at the uploaders.
        """
        self._pause = max(0, self._pause - 1)
        wanted = segment_number < self.known_segments or in_flight == 0
        return self.trusted and wanted and self._pause == 0

    def hashed(self, elapsed_seconds: float, cpu_seconds: float) -> None:
        """Take in what reading and hashing one segment took."""
        if cpu_seconds >= BUSY_SHARE * elapsed_seconds:
            self._pause = PAUSE_SEGMENTS + 1
