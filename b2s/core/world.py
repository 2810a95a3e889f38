"""What was observed of one source, here and in the bucket, before anything is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from b2s.core.journal import BackupProgress
from b2s.core.manifest import Host, Manifest, ManifestLink, SendParent, SnapshotIdentity, SourceIdentity
from b2s.core.model import Kind, SubvolumeFacts
from b2s.core.schedule import Slots


@dataclass(frozen=True, slots=True)
class ChunkSummary:
    """One chunk of a committed backup, without its segment hashes."""

    key: str  # relative to <prefix>/<source>/
    bytes: int
    etag: str
    sha256_composite: str  # base64-N


@dataclass(frozen=True, slots=True)
class BackupSummary:
    """One committed backup: its manifest without what no plan needs, segment hashes and nested subvolumes."""

    manifest_sha256: str  # hex, of the stored bytes
    backup_id: str
    sequence: int
    previous: ManifestLink | None
    kind: Kind
    created_at: datetime  # aware UTC
    committed_at: datetime  # aware UTC
    host: Host
    source: SourceIdentity
    snapshot: SnapshotIdentity
    send_parent: SendParent | None
    stream_bytes: int
    storage_class: str
    chunks: tuple[ChunkSummary, ...]

    @classmethod
    def of(cls, manifest: Manifest, manifest_sha256: str) -> BackupSummary:
        """Return the summary of a decoded manifest."""
        return cls(
            manifest_sha256=manifest_sha256,
            backup_id=manifest.backup_id,
            sequence=manifest.sequence,
            previous=manifest.previous,
            kind=manifest.kind,
            created_at=manifest.created_at,
            committed_at=manifest.committed_at,
            host=manifest.host,
            source=manifest.source,
            snapshot=replace(manifest.snapshot, nested_subvolumes=()),
            send_parent=manifest.send_parent,
            stream_bytes=manifest.stream.bytes,
            storage_class=manifest.storage.storage_class,
            chunks=tuple(
                ChunkSummary(chunk.key, chunk.bytes, chunk.etag, chunk.sha256_composite) for chunk in manifest.chunks
            ),
        )

    @property
    def link(self) -> ManifestLink:
        """Return the pointer with which the next manifest names this one."""
        return ManifestLink(self.sequence, self.manifest_sha256)

    def as_send_parent(self) -> SendParent:
        """Return what the manifest of an incremental on top of this backup says of it."""
        return SendParent(self.backup_id, self.sequence, self.manifest_sha256, self.snapshot.uuid)


class Health(StrEnum):
    """What is known of the chain that ends in the newest backup."""

    UNCHECKED = "unchecked"  # its manifests link up, as far as was looked; its chunks were not asked for
    WHOLE = "whole"
    MANIFEST_MISSING = "manifest_missing"
    CHUNK_MISSING = "chunk_missing"
    CHAIN_BROKEN = "chain_broken"


@dataclass(frozen=True, slots=True)
class HeadChain:
    """The chain that ends in the newest committed backup of a source."""

    head: BackupSummary  # the newest backup
    full: BackupSummary | None  # what it hangs from; None where it does not lead to a full
    length: int  # backups, the full included
    health: Health
    detail: str = ""  # which manifest or chunk, and what is wrong with it

    @classmethod
    def of(cls, backups: Sequence[BackupSummary], health: Health, detail: str = "") -> HeadChain:
        """Return the chain of these backups, oldest first, at least one."""
        full = backups[0] if backups[0].kind is Kind.FULL else None
        return cls(backups[-1], full, len(backups), health, detail)

    @property
    def checked(self) -> bool:
        """Return whether the chunks were looked for."""
        return self.health is not Health.UNCHECKED


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often a source is backed up: its schedule settings, with the zone looked up."""

    slots: Slots
    full_every: timedelta
    incremental_every: timedelta
    skip_unchanged: bool = True
    max_chain_length: int | None = None  # backups in a chain at most, the full included


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A backup that the journal says was begun, and what a resume of it would need."""

    progress: BackupProgress
    snapshot: SubvolumeFacts | None  # its snapshot, found by UUID
    send_parent: SubvolumeFacts | None  # its send parent's snapshot, found by UUID or received UUID
    holder: str | None = None  # backup_id that holds its sequence in the bucket; None: the number is free


@dataclass(frozen=True, slots=True)
class SourceWorld:
    """Everything that decides what happens to one source."""

    name: str
    now: datetime  # aware UTC
    rhythm: Rhythm
    host_id: str
    source: SubvolumeFacts | None  # None: it cannot be backed up, `source_problem` says why
    source_problem: str = ""
    source_hint: str | None = None
    ancestors: tuple[str, ...] = ()  # UUIDs of what the source was made from, as far as it is found here
    candidates: tuple[SubvolumeFacts, ...] = ()  # local, uuid or received_uuid is the head's snapshot UUID
    top: ManifestLink | None = None  # the highest manifest in the bucket, readable or not; None: there is none
    chain: HeadChain | None = None  # None: no manifest, or none that can be read
    lost: str = ""  # sentence: a manifest that this host saw committed is not in the bucket any more
    unchanged_at: datetime | None = None  # when the head was last found to be still up to date, aware UTC
    unfinished: Unfinished | None = None
