"""An uploader process: takes one task at a time, hashes segments and stores them as parts, reports receipts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from b2s.adapters.spool import Spool
from b2s.core.messages import (
    BytesMoved,
    ChunkOpened,
    ChunkStored,
    CompleteChunk,
    OpenChunk,
    SegmentDiffers,
    SegmentStored,
    StoreSegment,
    TaskRetried,
)
from b2s.core.model import Receipt, Sha256, StoredPart, StoreFacts
from b2s.core.sizing import composite_sha256
from b2s.core.store_settings import S3Settings
from b2s.errors import PartRejected, SpoolDamaged
from b2s.processes.child import ChildBoot, child_process, serve

if TYPE_CHECKING:
    from b2s.adapters.s3 import Bucket

T = TypeVar("T")

SIGN_OF_LIFE_SECONDS = 0.5
BANDWIDTH_FILE = "bandwidth"  # in the spool directory: one limit for all uploaders of the stream


def main(
    boot: ChildBoot,
    settings: S3Settings,
    facts: StoreFacts,
    spool_path: Path,
    slot_bytes: int,
    tasks: Queue[Any],
    replies: Connection,
) -> None:
    """Run tasks until `Stop`; a task that cannot be done is reported and ends nothing here."""
    # Imported by the forkserver; the supervisor, which needs this module only by name, does without.
    from b2s.adapters.bandwidth import Bandwidth
    from b2s.adapters.s3 import Bucket

    with child_process(boot, replies):
        spool = Spool.attach(spool_path, slot_bytes, writable=False)
        bandwidth = Bandwidth(spool_path / BANDWIDTH_FILE, settings.max_bandwidth) if settings.max_bandwidth else None
        signs = SignsOfLife(replies)
        bucket = Bucket.connect(
            settings,
            stop=signs.alive,
            on_bytes=signs,
            on_retry=lambda error, attempt, wait: replies.send(TaskRetried(error.to_wire(), attempt, wait)),
            bandwidth=bandwidth,
        )
        serve(tasks, replies, lambda task: signs.of(lambda: _do(task, bucket, spool, facts)))


def _do(task: object, bucket: Bucket, spool: Spool, facts: StoreFacts) -> object:
    match task:
        case OpenChunk(chunk_index, key):
            return ChunkOpened(chunk_index, bucket.create_upload(key))
        case StoreSegment():
            return _store(task, bucket, spool, facts)
        case CompleteChunk(chunk_index, key, upload_id, receipts):
            stored = bucket.complete_upload(key, upload_id, receipts, facts)
            ours = composite_sha256(receipt.sha256 for receipt in receipts)  # the store agreed, where it knows one
            return ChunkStored(chunk_index, stored.bytes, stored.etag, ours)
    raise TypeError(f"an uploader cannot do {task!r}")


def _store(task: StoreSegment, bucket: Bucket, spool: Spool, facts: StoreFacts) -> SegmentStored | SegmentDiffers:
    body = spool.slot(task.slot)[: task.bytes]
    sha256 = _hash_of(body, task.sha256, facts)
    known = task.known
    if known is not None and _is_stored(known, body, sha256, facts):
        receipt = Receipt(known.part_number, known.bytes, sha256, known.etag)
        return SegmentStored(task.chunk_index, task.segment_index, receipt, reused=True)
    if task.upload_id is None:
        if known is not None:
            return SegmentDiffers(task.chunk_index, task.segment_index)
        # The journal lost this receipt; the chunk's checksum as a whole decides, once all segments are hashed.
        receipt = Receipt(task.segment_index + 1, task.bytes, sha256, "")
        return SegmentStored(task.chunk_index, task.segment_index, receipt, reused=True)
    # Where the store checks no SHA-256, its MD5 has to do; one that checks both needs only the first.
    md5 = None if facts.sha256 else _md5(body)
    try:
        receipt = bucket.put_part(task.key, task.upload_id, task.segment_index + 1, body, sha256, md5, facts)
    except PartRejected as error:
        if hashlib.sha256(body).digest() != sha256:
            raise SpoolDamaged("the spool returned other bytes than were hashed a moment ago") from error
        raise
    return SegmentStored(task.chunk_index, task.segment_index, receipt, reused=False)


def _hash_of(body: memoryview, hashed_before: Sha256 | None, facts: StoreFacts) -> Sha256:
    """Return the segment's SHA-256; the chunker's is enough where the store compares it with what arrives."""
    if hashed_before is not None and facts.sha256:
        return hashed_before
    sha256 = Sha256(hashlib.sha256(body).digest())
    if hashed_before not in (None, sha256):
        raise SpoolDamaged("the spool returned other bytes than came from btrfs send")
    return sha256


def _is_stored(known: StoredPart, body: memoryview, sha256: Sha256, facts: StoreFacts) -> bool:
    """Tell whether S3 has this very segment: by its SHA-256, or by its MD5 where only the ETag is known."""
    if known.bytes != len(body):
        return False
    if known.sha256 is not None:
        return known.sha256 == sha256
    return facts.etag_is_md5 and known.etag == _md5(body).hex()


def _md5(body: memoryview) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


class SignsOfLife:
    """Adds up bytes as they move and reports them now and then."""

    def __init__(self, replies: Connection, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._replies = replies
        self._monotonic = monotonic
        self._bytes = 0
        self._last = monotonic()

    def __call__(self, count: int) -> None:
        """Count bytes that moved."""
        self._bytes += count
        if self._monotonic() - self._last >= SIGN_OF_LIFE_SECONDS:
            self.tell()

    def alive(self) -> None:
        """Say that we live though no byte moves: before another try, or while it is not our turn to send."""
        if self._monotonic() - self._last >= SIGN_OF_LIFE_SECONDS:
            self._tell()

    def of(self, work: Callable[[], T]) -> T:
        """Do one task's work, and report the last of its bytes before it counts as done."""
        try:
            return work()
        finally:
            self.tell()

    def tell(self) -> None:
        """Report what was counted since the last time, if it was anything."""
        if self._bytes:
            self._tell()

    def _tell(self) -> None:
        self._replies.send(BytesMoved(self._bytes))
        self._bytes, self._last = 0, self._monotonic()
