"""The arithmetic of cutting: stream bytes into chunks, chunks into segments, segments into a spool budget."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from b2s.core.limits import (
    CHUNKS_PER_BACKUP_MAX,
    MANIFEST_SEGMENTS_MAX,
    MIB,
)
from b2s.errors import UsageError

# Every slot is a mapping in the chunker and in each uploader.
# Source: Linux Documentation/admin-guide/sysctl/vm.rst, max_map_count (65530 by default); read 2026-11.
SPOOL_SLOTS_MAX = 32_768

# What a process of ours may hold besides spool slots: the interpreter, boto3, TLS and connection buffers.
PROCESS_BYTES_MAX = 96 * MIB
# What the supervisor may hold per segment of a backup: receipt, hash, its line of the manifest and the encoding of it.
SEGMENT_RECORD_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True)
class SegmentPlace:
    """Where one segment of the stream belongs."""

    chunk_index: int
    segment_index: int  # within the chunk
    part_number: int  # segment_index + 1
    fills_chunk: bool  # no later segment of this chunk is possible


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """What a stream of a known length is cut into."""

    chunks: int
    segments: int
    last_chunk_bytes: int  # 0 only for an empty stream
    last_segment_bytes: int  # 0 only for an empty stream


@dataclass(frozen=True, slots=True)
class Sizes:
    """The two sizes that decide every cut."""

    segment_size_bytes: int
    chunk_size_bytes: int  # a multiple of segment_size_bytes

    @property
    def segments_per_chunk(self) -> int:
        """Return the segments of a full chunk."""
        return self.chunk_size_bytes // self.segment_size_bytes

    @property
    def stream_bytes_max(self) -> int:
        """Return the longest stream that one manifest can describe with these sizes."""
        return min(MANIFEST_SEGMENTS_MAX * self.segment_size_bytes, CHUNKS_PER_BACKUP_MAX * self.chunk_size_bytes)

    def place(self, segment_number: int) -> SegmentPlace:
        """Return where the n-th segment of the stream belongs, counted from 0."""
        chunk_index, segment_index = divmod(segment_number, self.segments_per_chunk)
        part_number = segment_index + 1
        return SegmentPlace(chunk_index, segment_index, part_number, part_number == self.segments_per_chunk)

    def count(self, stream_bytes: int) -> StreamCounts:
        """Return what a stream of this length is cut into; an exact multiple leaves no empty rest."""
        if stream_bytes == 0:
            return StreamCounts(0, 0, 0, 0)
        chunks = segments_in(stream_bytes, self.chunk_size_bytes)
        segments = segments_in(stream_bytes, self.segment_size_bytes)
        return StreamCounts(
            chunks,
            segments,
            stream_bytes - (chunks - 1) * self.chunk_size_bytes,
            stream_bytes - (segments - 1) * self.segment_size_bytes,
        )


def segments_in(size_bytes: int, segment_size_bytes: int) -> int:
    """Return how many segments (or chunks) of the given size hold so many bytes."""
    return -(-size_bytes // segment_size_bytes)


def segment_range(segment_index: int, segment_size_bytes: int, chunk_bytes: int) -> tuple[int, int]:
    """Return offset and length of one segment within its chunk, in bytes."""
    offset = segment_index * segment_size_bytes
    return offset, min(segment_size_bytes, chunk_bytes - offset)


@dataclass(frozen=True, slots=True)
class SpoolPlan:
    """What the spool's budget allows."""

    slots: int  # each holds one segment
    budget_bytes: int  # slots * segment size: what the spool occupies at most
    effective_concurrency: int  # uploaders that can all hold a slot


def spool_slots(*, on_disk: bool, size_bytes: int, segment_size_bytes: int, concurrency: int) -> SpoolPlan:
    """Divide the spool's budget into slots.

    In memory there are `concurrency + 2` slots: one per uploader, one being filled, one filled and waiting. On disk
    there are as many as `size_bytes` holds. One slot is left to the chunker where there are two or more, so that it
    fills while the uploaders send.

    Args:
        on_disk: `spool.enabled`.
        size_bytes: `spool.size`; only used on disk.
        segment_size_bytes: `s3.segment_size`.
        concurrency: `s3.concurrency` as configured.

    Raises:
        UsageError: The disk budget does not hold one segment.
    """
    if on_disk:
        slots = min(size_bytes // segment_size_bytes, SPOOL_SLOTS_MAX)
        if slots < 1:
            raise UsageError(
                f"spool.size ({size_bytes} bytes) does not hold one segment ({segment_size_bytes} bytes)",
                hint="raise spool.size; an interrupted backup keeps the segment size it began with, --fresh drops it",
            )
    else:
        slots = concurrency + 2
    return SpoolPlan(slots, slots * segment_size_bytes, min(concurrency, max(1, slots - 1)))


def memory_bytes_max(plan: SpoolPlan, *, on_disk: bool, segments: int) -> int:
    """Return the most memory a backup may occupy, in bytes, all its processes together.

    `(0 if on_disk else slots * segment_size) + (3 + concurrency) * 96 MiB + segments * 1 KiB`: the slots; supervisor,
    chunker, fork server and uploaders; and what the supervisor knows of each segment of the backup. It does not
    depend on the stream's length otherwise. `btrfs send` itself is not counted.
    """
    slots_bytes = 0 if on_disk else plan.budget_bytes
    return slots_bytes + (3 + plan.effective_concurrency) * PROCESS_BYTES_MAX + segments * SEGMENT_RECORD_BYTES_MAX


def composite_sha256(digests: Iterable[bytes]) -> str:
    """Return the checksum of a multipart object as S3 prints it: base64 of the hash of the parts' hashes, `-N`.

    Args:
        digests: The SHA-256 of each part, 32 raw bytes each, in part order.

    Source: Amazon S3 User Guide, "Checking object integrity", composite checksums (read 2026-11).
    """
    hasher = hashlib.sha256()
    parts = 0
    for digest in digests:
        hasher.update(digest)
        parts += 1
    return f"{base64.b64encode(hasher.digest()).decode('ascii')}-{parts}"
