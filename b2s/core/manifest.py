"""The manifest: the immutable JSON document that describes one backup. Writing it is the commit.

`docs/format.md` specifies it. A manifest read from a bucket is untrusted input: `decode` bounds and checks
everything before anyone uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from b2s.core.model import Kind, Sha256

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class ManifestLink:
    """A pointer to an older manifest of the same source, by the hash of its stored bytes."""

    sequence: int
    manifest_sha256: str  # hex


@dataclass(frozen=True, slots=True)
class Host:
    """The machine that made the backup."""

    name: str
    id: str  # hex HMAC of the machine id, never the id itself


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """The subvolume that was backed up."""

    name: str
    path: str
    uuid: str
    filesystem_uuid: str


@dataclass(frozen=True, slots=True)
class SnapshotIdentity:
    """The read-only snapshot whose stream is stored."""

    name: str
    path: str
    uuid: str
    ctransid: int
    nested_subvolumes: tuple[str, ...]  # paths relative to the source; their content is not in the stream


@dataclass(frozen=True, slots=True)
class SendParent:
    """The backup whose snapshot was given to `btrfs send -p`."""

    backup_id: str
    sequence: int
    manifest_sha256: str  # hex
    snapshot_uuid: str


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """The stream as a whole."""

    bytes: int
    protocol: int
    compressed_data: bool


@dataclass(frozen=True, slots=True)
class ManifestChunk:
    """One S3 object of the stream."""

    key: str  # relative to <prefix>/<source>/
    bytes: int
    sha256_composite: str  # base64-N, as S3 prints it
    etag: str  # as S3 returned it on completion, without quotes, empty where not recorded; for stores without SHA-256
    segment_sha256: tuple[Sha256, ...]


@dataclass(frozen=True, slots=True)
class Storage:
    """How the chunks were stored."""

    storage_class: str  # JSON key "class"
    sse: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup."""

    b2s_version: str
    backup_id: str
    sequence: int  # from 1, per source
    previous: ManifestLink | None
    kind: Kind
    created_at: datetime  # the snapshot's moment, aware UTC
    committed_at: datetime  # aware UTC
    host: Host
    source: SourceIdentity
    snapshot: SnapshotIdentity
    send_parent: SendParent | None  # None exactly for a full
    stream: StreamFacts
    segment_size_bytes: int
    encoding: tuple[str, ...]  # transforms of the stored bytes, none today
    chunks: tuple[ManifestChunk, ...]
    storage: Storage
