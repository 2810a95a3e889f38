"""A second, straightforward writer of the bucket's format: `btrfs send` and boto3, nothing of `b2s backup`.

What it writes and `b2s restore` reads back shows that the format is what docs/format.md says, not what one program
does.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from b2s.adapters.btrfs import subvolume_facts
from b2s.core.chain import Stored
from b2s.core.layout import Layout, new_backup_id
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
from tests.parts.servers import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1 << 20


@dataclass
class ReferenceUploader:
    """Backs up snapshots of one source."""

    server: S3Server
    bucket: str
    prefix: str
    source: str = "data"
    segment_bytes: int = 5 * MIB
    chunk_bytes: int = 10 * MIB
    storage_class: str = "STANDARD"
    stored: list[Stored] = field(default_factory=list)

    @property
    def client(self) -> S3Client:
        """The client of the server."""
        return self.server.client()

    @property
    def layout(self) -> Layout:
        """The keys of the source."""
        return Layout(self.prefix, self.source)

    def full(self, snapshot: Path, *, created_at: datetime | None = None) -> Manifest:
        """Store a full backup of a read-only snapshot."""
        return self._backup(snapshot, _send(snapshot, None), None, created_at)

    def incremental(self, snapshot: Path, parent: Path, *, created_at: datetime | None = None) -> Manifest:
        """Store what changed since `parent`, whose backup is the newest stored one."""
        return self._backup(snapshot, _send(snapshot, parent), self.stored[-1], created_at)

    def stream(self, stream: bytes, snapshot: Path, *, created_at: datetime | None = None) -> Manifest:
        """Store any bytes as if they were the full stream of a snapshot."""
        return self._backup(snapshot, stream, None, created_at)

    def put_manifest(self, manifest: Manifest) -> bytes:
        """Write a manifest under its key."""
        body = encode(manifest)
        self.client.put_object(Bucket=self.bucket, Key=self.layout.manifest_key(manifest.sequence), Body=body)
        self.stored.append(Stored(manifest, sha256_of(body), len(body)))
        return body

    def chunk_keys(self) -> list[str]:
        """The full keys of all chunks of all backups, in order."""
        return [self.layout.absolute(chunk.key) for stored in self.stored for chunk in stored.manifest.chunks]

    def _backup(self, snapshot: Path, stream: bytes, parent: Stored | None, created_at: datetime | None) -> Manifest:
        kind = Kind.INCREMENTAL if parent else Kind.FULL
        facts = subvolume_facts(str(snapshot))
        created = created_at or datetime.now(UTC).replace(microsecond=0)
        backup_id = new_backup_id(created, kind, secrets.token_hex(4))
        origin = facts.parent_uuid or facts.uuid
        head = self.stored[-1] if self.stored else None
        manifest = Manifest(
            b2s_version="reference",
            backup_id=backup_id,
            sequence=len(self.stored) + 1,
            previous=ManifestLink(head.manifest.sequence, head.sha256) if head else None,
            kind=kind,
            created_at=created,
            committed_at=created,
            host=Host("origin", "ab" * 32),
            source=SourceIdentity(self.source, "/srv/data", origin, facts.filesystem_uuid),
            snapshot=SnapshotIdentity(snapshot.name, str(snapshot), facts.uuid, facts.ctransid, ()),
            send_parent=SendParent(
                parent.manifest.backup_id, parent.manifest.sequence, parent.sha256, parent.manifest.snapshot.uuid
            )
            if parent
            else None,
            stream=StreamFacts(len(stream), 1, False),
            segment_size_bytes=self.segment_bytes,
            encoding=(),
            chunks=tuple(self._chunks(backup_id, stream)),
            storage=Storage(self.storage_class, "none"),
        )
        self.put_manifest(manifest)
        return manifest

    def _chunks(self, backup_id: str, stream: bytes) -> list[ManifestChunk]:
        chunks = []
        for index, start in enumerate(range(0, len(stream), self.chunk_bytes)):
            content = stream[start : start + self.chunk_bytes]
            chunks.append(self._chunk(f"chunks/{backup_id}/{index:06d}", content))
        return chunks

    def _chunk(self, relative: str, content: bytes) -> ManifestChunk:
        key = self.layout.absolute(relative)
        segments = [content[at : at + self.segment_bytes] for at in range(0, len(content), self.segment_bytes)]
        hashes = [hashlib.sha256(segment).digest() for segment in segments]
        target: dict[str, Any] = {"Bucket": self.bucket, "Key": key}
        options: dict[str, Any] = {} if self.storage_class == "STANDARD" else {"StorageClass": self.storage_class}
        upload = self.client.create_multipart_upload(**target, ChecksumAlgorithm="SHA256", **options)["UploadId"]
        parts: list[Any] = []
        for number, (segment, digest) in enumerate(zip(segments, hashes, strict=True), start=1):
            checksum = base64.b64encode(digest).decode()
            reply = self.client.upload_part(
                **target, UploadId=upload, PartNumber=number, Body=segment, ChecksumSHA256=checksum
            )
            parts.append({"PartNumber": number, "ETag": reply["ETag"], "ChecksumSHA256": checksum})
        self.client.complete_multipart_upload(**target, UploadId=upload, MultipartUpload={"Parts": parts})
        etag = self.client.head_object(**target)["ETag"].strip('"')
        composite = base64.b64encode(hashlib.sha256(b"".join(hashes)).digest()).decode() + f"-{len(hashes)}"
        return ManifestChunk(relative, len(content), composite, etag, tuple(Sha256(each) for each in hashes))


def _send(snapshot: Path, parent: Path | None) -> bytes:
    options = ["-p", str(parent)] if parent else []
    done = subprocess.run(["btrfs", "send", "-q", *options, str(snapshot)], capture_output=True, check=True)
    return done.stdout
