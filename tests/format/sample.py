"""The manifests stored beside this file, as values; and how the files were made.

The `.json` files are never made again: they are what old buckets contain. When the format changes, new files of the
new version are added and these stay.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from b2s.core.manifest import (
    Host,
    Manifest,
    ManifestChunk,
    ManifestLink,
    SendParent,
    SnapshotIdentity,
    SourceIdentity,
    Storage,
    StreamFacts,
)
from b2s.core.manifest_codec import encode, sha256_of
from b2s.core.model import Kind, Sha256
from b2s.core.sizing import composite_sha256

HERE = Path(__file__).parent
MIB = 1024 * 1024
SEGMENT = 5 * MIB
HOST = Host("web1.example.org", hashlib.sha256(b"machine").hexdigest())
SOURCE = SourceIdentity(
    "data", "/srv/data", "7c1f2a58-0a38-4a8c-9f0e-000000000001", "7c1f2a58-0a38-4a8c-9f0e-0000000000f5"
)


def sample_chunks(backup_id: str, sizes: tuple[int, ...]) -> tuple[ManifestChunk, ...]:
    """Return chunks of the given sizes in bytes with made-up segment hashes."""
    chunks = []
    for index, size in enumerate(sizes):
        hashes = tuple(
            Sha256(hashlib.sha256(f"{backup_id} {index} {segment}".encode()).digest())
            for segment in range(-(-size // SEGMENT))
        )
        etag = f"{hashlib.md5(b''.join(hashes)).hexdigest()}-{len(hashes)}"
        key = f"chunks/{backup_id}/{index:06d}"
        chunks.append(ManifestChunk(key, size, composite_sha256(hashes), etag, hashes))
    return tuple(chunks)


def full() -> Manifest:
    """Return the first backup of a source: two full chunks and the rest of the stream."""
    backup_id = "20261122T010000Z-full-00c0ffee"
    sizes = (2 * SEGMENT, 2 * SEGMENT, SEGMENT + 12345)
    return Manifest(
        b2s_version="0.1.0",
        backup_id=backup_id,
        sequence=1,
        previous=None,
        kind=Kind.FULL,
        created_at=datetime(2026, 11, 22, 1, 0, 0, 250_000, tzinfo=UTC),
        committed_at=datetime(2026, 11, 22, 3, 14, 15, tzinfo=UTC),
        host=HOST,
        source=SOURCE,
        snapshot=SnapshotIdentity(
            "data.20261122T010000Z",
            "/srv/.b2s-snapshots/data.20261122T010000Z",
            "7c1f2a58-0a38-4a8c-9f0e-000000000101",
            4711,
            ("var/lib/machines", "with space/\u00fcber"),
        ),
        send_parent=None,
        stream=StreamFacts(sum(sizes), 1, False),
        segment_size_bytes=SEGMENT,
        encoding=(),
        chunks=sample_chunks(backup_id, sizes),
        storage=Storage("DEEP_ARCHIVE", "AES256"),
    )


def incremental(parent: Manifest | None = None, parent_sha256: str | None = None) -> Manifest:
    """Return the second backup: an incremental of one short chunk, protocol 2 with compressed data."""
    parent = parent or full()
    parent_sha256 = parent_sha256 or sha256_of(encode(parent))
    backup_id = "20261129T010000Z-inc-00decade"
    return Manifest(
        b2s_version="0.1.0",
        backup_id=backup_id,
        sequence=2,
        previous=ManifestLink(1, parent_sha256),
        kind=Kind.INCREMENTAL,
        created_at=datetime(2026, 11, 29, 1, 0, 0, tzinfo=UTC),
        committed_at=datetime(2026, 11, 29, 1, 0, 9, 1, tzinfo=UTC),
        host=HOST,
        source=SOURCE,
        snapshot=SnapshotIdentity(
            "data.20261129T010000Z",
            "/srv/.b2s-snapshots/data.20261129T010000Z",
            "7c1f2a58-0a38-4a8c-9f0e-000000000102",
            4800,
            (),
        ),
        send_parent=SendParent(parent.backup_id, 1, parent_sha256, parent.snapshot.uuid),
        stream=StreamFacts(777, 2, True),
        segment_size_bytes=SEGMENT,
        encoding=(),
        chunks=sample_chunks(backup_id, (777,)),
        storage=Storage("STANDARD", "none"),
    )
