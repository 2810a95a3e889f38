"""The state of one stream's download: segments are fetched in any order and fed in theirs. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from b2s.core.manifest import Manifest
from b2s.core.messages import FeedSegment, FetchSegment, SegmentFed, SegmentFetched
from b2s.core.model import Sha256
from b2s.core.sizing import segment_range


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """One segment as it lies in the bucket."""

    number: int  # 0-based over the whole stream
    key: str
    etag: str  # of the object that was checked
    offset: int  # bytes from the start of the object
    bytes: int
    sha256: Sha256


def segments_of(manifest: Manifest, objects: list[tuple[str, str]]) -> Iterator[StoredSegment]:
    """Yield the segments of a stream in order.

    Args:
        manifest: The backup.
        objects: Full key and ETag of each chunk, in the manifest's order.
    """
    number = 0
    for chunk, (key, etag) in zip(manifest.chunks, objects, strict=True):
        for index, sha256 in enumerate(chunk.segment_sha256):
            offset, size = segment_range(index, manifest.segment_size_bytes, chunk.bytes)
            yield StoredSegment(number, key, etag, offset, size, sha256)
            number += 1


@dataclass(slots=True)
class FetchBoard:
    """Lends `slots` spool slots to the segments of one stream.

    A slot is given to segments in stream order, so the one that is fed next always has one and the others cannot
    starve it. At most `slots` segments are between being asked for and being fed.
    """

    segments: Iterator[StoredSegment]
    slots: int
    fed_segments: int = 0
    fed_bytes: int = 0
    allocated: int = 0  # how many different slots were lent; times the slot size it is the peak of the spool
    _free: list[int] = field(default_factory=list)
    _under_way: dict[int, FetchSegment] = field(default_factory=dict)
    _verified: dict[int, FetchSegment] = field(default_factory=dict)
    _feeding: dict[int, FetchSegment] = field(default_factory=dict)
    _next: int = 0  # the segment number to be fed next
    _exhausted: bool = False

    @property
    def done(self) -> bool:
        """Tell whether every segment was fed."""
        return self._exhausted and not (self._under_way or self._verified or self._feeding)

    @property
    def starving(self) -> bool:
        """Tell whether the reader has read all there is for it, and more is to come."""
        return not self._feeding and bool(self._under_way)

    @property
    def in_use(self) -> int:
        """Return how many slots hold a segment, or will when it has come."""
        return len(self._under_way) + len(self._verified) + len(self._feeding)

    def fetches(self) -> list[FetchSegment]:
        """Return the segments to fetch now: one for each free slot."""
        tasks: list[FetchSegment] = []
        while not self._exhausted and (self._free or self.allocated < self.slots):
            segment = next(self.segments, None)
            if segment is None:
                self._exhausted = True
                break
            slot = self._lend()
            task = FetchSegment(
                segment.number, slot, segment.key, segment.etag, segment.offset, segment.bytes, segment.sha256
            )
            self._under_way[segment.number] = task
            tasks.append(task)
        return tasks

    def bytes_of(self, segment_number: int) -> int:
        """Return the bytes of a segment that is being fetched."""
        return self._under_way[segment_number].bytes

    def fetched(self, report: SegmentFetched) -> list[FeedSegment]:
        """Take in that a segment's hash matched; return what may be fed now, in order."""
        self._verified[report.segment_number] = self._under_way.pop(report.segment_number)
        feeds: list[FeedSegment] = []
        while (task := self._verified.pop(self._next, None)) is not None:
            self._feeding[self._next] = task
            feeds.append(FeedSegment(task.segment_number, task.slot, task.bytes))
            self._next += 1
        return feeds

    def fed(self, report: SegmentFed) -> int:
        """Take in that `btrfs receive` has a segment, its slot is free; return its bytes."""
        task = self._feeding.pop(report.segment_number)
        self._free.append(task.slot)
        self.fed_segments += 1
        self.fed_bytes += task.bytes
        return task.bytes

    def _lend(self) -> int:
        if self._free:
            return self._free.pop()
        self.allocated += 1
        return self.allocated - 1
