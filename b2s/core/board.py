"""The state of one stream's upload: what was reported goes in, the next tasks come out. No I/O, no clock.

The first chunk is opened at once, each other when its first segment is announced; segments become parts as they come,
and a chunk is completed when all of its own are stored. The newest chunk may be the last of the stream, and the last is
completed only after `confirm_stream`: nobody knows before whether the stream is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from b2s.core.journal import StoredChunk
from b2s.core.messages import (
    ChunkOpened,
    ChunkStored,
    CompleteChunk,
    OpenChunk,
    SegmentSpooled,
    SegmentStored,
    StoreSegment,
)
from b2s.core.model import Receipt, Sha256, StoredPart
from b2s.core.sizing import Sizes, composite_sha256, segments_in
from b2s.errors import StreamChanged

UploadTask = OpenChunk | StoreSegment | CompleteChunk


class ChunkStage(Enum):
    """How far a chunk is."""

    OPENING = "opening"
    OPEN = "open"
    COMPLETING = "completing"
    STORED = "stored"


@dataclass(frozen=True, slots=True)
class ResumedChunk:
    """What S3 already has of one chunk: an open upload, or the whole object."""

    upload_id: str | None  # of the open upload; None when the chunk is stored
    parts: Mapping[int, StoredPart]  # by number; one need not be sent again when its hash is the same
    stored: StoredChunk | None

    @property
    def known_bytes(self) -> int:
        """Return the bytes that may be reused."""
        return self.stored.bytes if self.stored else sum(part.bytes for part in self.parts.values())


@dataclass(frozen=True, slots=True)
class FinishedChunk:
    """A chunk as the manifest will describe it."""

    key: str
    bytes: int
    etag: str
    sha256_composite: str
    segment_sha256: tuple[Sha256, ...]


@dataclass(slots=True)
class _Chunk:
    key: str
    stage: ChunkStage
    upload_id: str | None = None
    known: Mapping[int, StoredPart] = field(default_factory=dict)
    stored: StoredChunk | None = None
    waiting: list[SegmentSpooled] = field(default_factory=list)
    receipts: dict[int, Receipt] = field(default_factory=dict)
    segments: int | None = None  # known once the last one was announced
    finished: FinishedChunk | None = None

    @property
    def has_all_parts(self) -> bool:
        return self.segments is not None and len(self.receipts) == self.segments


@dataclass(slots=True)
class UploadBoard:
    """Chunks under way and done.

    Attributes:
        key_of: Full key of a chunk by its index.
        resumed: What an earlier run left in S3, by chunk index.
    """

    key_of: Callable[[int], str]
    resumed: Mapping[int, ResumedChunk] = field(default_factory=dict)
    stream_confirmed: bool = False
    uploaded_bytes: int = 0
    reused_bytes: int = 0
    _chunks: dict[int, _Chunk] = field(default_factory=dict)
    _newest: int = -1  # the highest chunk index so far
    _slots: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Tell whether the stream is confirmed and every chunk of it stored."""
        return self.stream_confirmed and all(chunk.finished for chunk in self._chunks.values())

    def known_segments(self, sizes: Sizes) -> int:
        """Return after how many segments of the stream nothing is known any more of what an earlier run stored."""
        last = max((index for index, chunk in self.resumed.items() if chunk.known_bytes), default=None)
        if last is None:
            return 0
        chunk = self.resumed[last]
        return last * sizes.segments_per_chunk + max(
            max(chunk.parts, default=0),
            segments_in(chunk.stored.bytes, sizes.segment_size_bytes) if chunk.stored else 0,
        )

    def begin(self) -> list[UploadTask]:
        """Have the first chunk opened while its first segment is still being read."""
        return self._begin_chunk(0)

    def finished_chunks(self) -> tuple[FinishedChunk, ...]:
        """Return all chunks in order; only when `done`."""
        return tuple(chunk.finished for _, chunk in sorted(self._chunks.items()) if chunk.finished)

    def segment_spooled(self, segment: SegmentSpooled) -> list[UploadTask]:
        """Take in an announced segment."""
        self._slots[segment.chunk_index, segment.segment_index] = segment.slot
        tasks: list[UploadTask] = []
        if segment.chunk_index not in self._chunks:
            tasks += self._begin_chunk(segment.chunk_index)
            tasks += self._complete_if_ready(segment.chunk_index - 1)
        chunk = self._chunks[segment.chunk_index]
        if segment.last_in_chunk:
            chunk.segments = segment.segment_index + 1
        if chunk.stage is ChunkStage.OPENING:
            chunk.waiting.append(segment)
        else:
            tasks.append(self._store_task(chunk, segment))
        return tasks

    def chunk_opened(self, report: ChunkOpened) -> list[UploadTask]:
        """Take in that a chunk's multipart upload exists; its waiting segments become tasks."""
        chunk = self._chunks[report.chunk_index]
        chunk.stage, chunk.upload_id = ChunkStage.OPEN, report.upload_id
        tasks: list[UploadTask] = [self._store_task(chunk, segment) for segment in chunk.waiting]
        chunk.waiting.clear()
        return tasks

    def segment_stored(self, report: SegmentStored) -> tuple[int, list[UploadTask]]:
        """Take in that S3 has a segment; return the spool slot that is free now, and tasks."""
        slot = self._slots.pop((report.chunk_index, report.segment_index))
        chunk = self._chunks[report.chunk_index]
        chunk.receipts[report.receipt.part_number] = report.receipt
        if report.reused:
            self.reused_bytes += report.receipt.bytes
        else:
            self.uploaded_bytes += report.receipt.bytes
        return slot, self._complete_if_ready(report.chunk_index)

    def chunk_stored(self, report: ChunkStored) -> None:
        """Take in that a chunk is one confirmed object."""
        chunk = self._chunks[report.chunk_index]
        self._finish(chunk, StoredChunk(report.bytes, report.etag, report.sha256_composite))

    def confirm_stream(self) -> list[UploadTask]:
        """Take in that `btrfs send` exited 0 after a whole stream: the last chunk may be completed."""
        self.stream_confirmed = True
        return self._complete_if_ready(self._newest)

    def _begin_chunk(self, index: int) -> list[UploadTask]:
        chunk = self._chunks[index] = self._new_chunk(index)
        self._newest = max(self._newest, index)
        return [OpenChunk(index, chunk.key)] if chunk.stage is ChunkStage.OPENING else []

    def _new_chunk(self, index: int) -> _Chunk:
        key = self.key_of(index)
        resumed = self.resumed.get(index)
        if resumed is None:
            return _Chunk(key, ChunkStage.OPENING)
        return _Chunk(key, ChunkStage.OPEN, resumed.upload_id, resumed.parts, resumed.stored)

    def _store_task(self, chunk: _Chunk, segment: SegmentSpooled) -> StoreSegment:
        return StoreSegment(
            segment.chunk_index,
            segment.segment_index,
            segment.slot,
            segment.bytes,
            chunk.key,
            chunk.upload_id,
            chunk.known.get(segment.segment_index + 1),
            segment.sha256,
        )

    def _complete_if_ready(self, index: int) -> list[UploadTask]:
        chunk = self._chunks.get(index)
        may_be_last = index == self._newest and not self.stream_confirmed
        if chunk is None or chunk.stage is not ChunkStage.OPEN or not chunk.has_all_parts or may_be_last:
            return []
        if chunk.stored is not None or chunk.upload_id is None:
            assert chunk.stored is not None, "a chunk without an open upload is a stored one"
            self._compare(chunk, chunk.stored)
            self._finish(chunk, chunk.stored)
            return []
        chunk.stage = ChunkStage.COMPLETING
        receipts = tuple(chunk.receipts[number] for number in sorted(chunk.receipts))
        return [CompleteChunk(index, chunk.key, chunk.upload_id, receipts)]

    @staticmethod
    def _compare(chunk: _Chunk, stored: StoredChunk) -> None:
        """See that a chunk stored by an earlier run is what the stream holds now."""
        receipts = [chunk.receipts[number] for number in sorted(chunk.receipts)]
        composite = composite_sha256(receipt.sha256 for receipt in receipts)
        if (sum(receipt.bytes for receipt in receipts), composite) != (stored.bytes, stored.sha256_composite):
            raise StreamChanged(f"the stored chunk {chunk.key} is not what btrfs send makes now")

    def _finish(self, chunk: _Chunk, stored: StoredChunk) -> None:
        hashes = tuple(chunk.receipts[number].sha256 for number in sorted(chunk.receipts))
        chunk.finished = FinishedChunk(chunk.key, stored.bytes, stored.etag, stored.sha256_composite, hashes)
        chunk.stage = ChunkStage.STORED
        chunk.receipts, chunk.known = {}, {}
