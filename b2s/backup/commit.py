"""The commit: build the manifest of a stored stream and write it once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from b2s import __version__
from b2s.core.board import FinishedChunk
from b2s.core.journal import BackupIntent
from b2s.core.layout import Layout, chunk_relative
from b2s.core.manifest import Host, Manifest, ManifestChunk, Storage, StreamFacts
from b2s.core.manifest_codec import encode

if TYPE_CHECKING:
    from b2s.adapters.s3 import Bucket


def manifest_of(
    intent: BackupIntent, chunks: Sequence[FinishedChunk], stream_bytes: int, host: Host, committed_at: datetime
) -> Manifest:
    """Describe a backup whose stream is whole and stored."""
    stored = tuple(
        ManifestChunk(
            key=chunk_relative(intent.backup_id, index),
            bytes=chunk.bytes,
            sha256_composite=chunk.sha256_composite,
            etag=chunk.etag,
            segment_sha256=chunk.segment_sha256,
        )
        for index, chunk in enumerate(chunks)
    )
    return Manifest(
        b2s_version=__version__,
        backup_id=intent.backup_id,
        sequence=intent.sequence,
        previous=intent.previous,
        kind=intent.kind,
        created_at=intent.created_at,
        committed_at=committed_at,
        host=host,
        source=intent.source,
        snapshot=intent.snapshot,
        send_parent=intent.send_parent,
        stream=StreamFacts(stream_bytes, intent.protocol, intent.compressed_data),
        segment_size_bytes=intent.segment_size_bytes,
        encoding=(),
        chunks=stored,
        storage=Storage(intent.storage_class, intent.sse),
    )


def commit(bucket: Bucket, layout: Layout, manifest: Manifest) -> bytes:
    """Write the manifest under its sequence number: from here on the backup exists.

    Returns:
        The stored bytes.

    Raises:
        KeyTaken: Another writer was there first with this sequence number.
    """
    body = encode(manifest)
    bucket.put_new(layout.manifest_key(manifest.sequence), body)
    return body
