"""What travels between the processes: small frozen values, never file contents.

Backup:   chunker --(multiprocessing.Queue)--> supervisor --(a queue per uploader)--> uploader
          uploader --(a pipe per uploader)--> supervisor --(multiprocessing.Queue)--> chunker (free slots)
Restore:  supervisor --(a queue per downloader)--> downloader --(a pipe each)--> supervisor
          supervisor --(a queue)--> feeder --(a pipe)--> supervisor
"""

from __future__ import annotations

from dataclasses import dataclass

from b2s.core.model import Receipt, Sha256, StoredPart
from b2s.errors import WireError

# --- supervisor -> chunker -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SlotFree:
    """This spool slot may be filled."""

    slot: int


# --- chunker -> supervisor -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SegmentSpooled:
    """One segment of the stream lies in the spool, complete."""

    chunk_index: int
    segment_index: int  # within the chunk
    slot: int
    bytes: int
    last_in_chunk: bool
    sha256: Sha256 | None = None  # of what came out of the pipe; None: the chunker had other things to do


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The stream is over; everything before END was announced."""

    stream_bytes: int
    whole: bool  # framing right from the magic to END, nothing after it
    detail: str  # what is wrong when it is not whole
    given_up: bool  # the chunker stopped reading before the end: how `btrfs send` ends after that says nothing


@dataclass(frozen=True, slots=True)
class SlotUnusable:
    """The spool could not give this slot any room (ENOSPC, EDQUOT, EFBIG)."""

    slot: int
    detail: str


# --- supervisor -> uploader, downloader, feeder ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenChunk:
    """Begin the multipart upload of one chunk."""

    chunk_index: int
    key: str


@dataclass(frozen=True, slots=True)
class StoreSegment:
    """Hash one segment, if nobody has, and store it as one part, unless S3 has it already."""

    chunk_index: int
    segment_index: int
    slot: int
    bytes: int
    key: str
    upload_id: str | None  # None: the chunk is stored already, only compare the hash
    known: StoredPart | None  # what S3 has under this number: the same hash means it need not be sent again
    sha256: Sha256 | None = None  # None: still to be computed


@dataclass(frozen=True, slots=True)
class CompleteChunk:
    """Complete one chunk's multipart upload and have S3 confirm size and checksum."""

    chunk_index: int
    key: str
    upload_id: str
    receipts: tuple[Receipt, ...]  # in part order


@dataclass(frozen=True, slots=True)
class FetchSegment:
    """Download one segment into a spool slot and compare its hash."""

    segment_number: int  # 0-based over the whole stream: the order of feeding
    slot: int
    key: str
    etag: str
    offset: int  # bytes from the start of the object
    bytes: int
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class FeedSegment:
    """Write one verified segment into `btrfs receive`."""

    segment_number: int
    slot: int
    bytes: int


@dataclass(frozen=True, slots=True)
class FeedEnd:
    """Close the stream: everything was fed."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End your loop and exit 0."""


# --- uploader, downloader, feeder -> supervisor ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The process is up and waits for work."""


@dataclass(frozen=True, slots=True)
class BytesMoved:
    """Sign of life while a task is under way; bytes since the last one."""

    bytes: int


@dataclass(frozen=True, slots=True)
class TaskRetried:
    """A call failed for now and is tried again; also a sign of life."""

    error: WireError
    attempt: int  # 1 for the first retry
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class ChunkOpened:
    """The multipart upload exists."""

    chunk_index: int
    upload_id: str


@dataclass(frozen=True, slots=True)
class SegmentStored:
    """S3 has this part with our hash."""

    chunk_index: int
    segment_index: int
    receipt: Receipt
    reused: bool  # it was there already, nothing was sent


@dataclass(frozen=True, slots=True)
class SegmentDiffers:
    """A segment of an already completed chunk has another hash now: the stream is not the same."""

    chunk_index: int
    segment_index: int


@dataclass(frozen=True, slots=True)
class ChunkStored:
    """The chunk is one object now and S3 confirmed it."""

    chunk_index: int
    bytes: int
    etag: str
    sha256_composite: str  # base64-N


@dataclass(frozen=True, slots=True)
class SegmentFetched:
    """The segment lies in its slot and its hash matched."""

    segment_number: int
    slot: int


@dataclass(frozen=True, slots=True)
class SegmentFed:
    """`btrfs receive` has taken the segment; its slot is free."""

    segment_number: int
    slot: int


@dataclass(frozen=True, slots=True)
class StreamFed:
    """Everything was fed and the pipe is closed."""

    stream_bytes: int


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """The task cannot be done."""

    error: WireError
