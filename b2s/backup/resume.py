"""Ask S3 what it has of an interrupted backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from b2s.core.board import ResumedChunk
from b2s.core.journal import BackupProgress, ChunkProgress
from b2s.core.model import ObjectFacts, StoredPart
from b2s.core.resume import resume_chunk
from b2s.errors import ObjectMissing, UploadGone

if TYPE_CHECKING:
    from b2s.adapters.s3 import Bucket


def stored_so_far(bucket: Bucket, progress: BackupProgress) -> dict[int, ResumedChunk]:
    """Return what can be reused of each chunk, by chunk index.

    Raises:
        StreamChanged: An object under one of its keys is not what the journal knows.
        StoreError: S3 could not be asked.
    """
    resumed = {}
    for index, chunk in progress.chunks.items():
        found = resume_chunk(chunk, _parts(bucket, chunk), _object(bucket, chunk))
        if found is not None:
            resumed[index] = found
    return resumed


def _parts(bucket: Bucket, chunk: ChunkProgress) -> list[StoredPart] | None:
    if chunk.stored is not None:
        return None
    try:
        return bucket.list_parts(chunk.key, chunk.upload_id)
    except UploadGone:
        return None


def _object(bucket: Bucket, chunk: ChunkProgress) -> ObjectFacts | None:
    try:
        return bucket.head(chunk.key)
    except ObjectMissing:
        return None
