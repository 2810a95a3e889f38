"""What the journal remembers of a backup that is not committed yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from b2s.core.manifest import ManifestLink, SendParent, SnapshotIdentity, SourceIdentity
from b2s.core.model import Kind, Reason, Receipt


@dataclass(frozen=True, slots=True)
class BackupIntent:
    """Everything that was decided before the first byte; a resume goes on with exactly this."""

    backup_id: str
    sequence: int
    kind: Kind
    reason: Reason
    store: str  # endpoint, bucket and prefix it goes to, as one string
    created_at: datetime  # the snapshot's moment, aware UTC
    source: SourceIdentity
    snapshot: SnapshotIdentity
    previous: ManifestLink | None
    send_parent: SendParent | None
    send_parent_path: str | None  # where the send parent's snapshot lay
    protocol: int
    compressed_data: bool
    segment_size_bytes: int
    chunk_size_bytes: int
    storage_class: str
    sse: str


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk that was completed and confirmed."""

    bytes: int
    etag: str
    sha256_composite: str


@dataclass(frozen=True, slots=True)
class ChunkProgress:
    """How far one chunk got."""

    chunk_index: int
    key: str
    upload_id: str
    receipts: Mapping[int, Receipt]  # by part number
    stored: StoredChunk | None


@dataclass(frozen=True, slots=True)
class BackupProgress:
    """An unfinished backup and how far it got."""

    intent: BackupIntent
    chunks: Mapping[int, ChunkProgress]  # by chunk index

    @property
    def stored_bytes(self) -> int:
        """Return the bytes that S3 acknowledged."""
        return sum(receipt.bytes for chunk in self.chunks.values() for receipt in chunk.receipts.values())
