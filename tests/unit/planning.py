"""A small world to plan in: one source on one host, and the backups it made."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from b2s.core.journal import BackupIntent, BackupProgress
from b2s.core.manifest import Host, SnapshotIdentity, SourceIdentity
from b2s.core.model import Kind, Reason, SubvolumeFacts
from b2s.core.schedule import Slots
from b2s.core.world import BackupSummary, ChunkSummary, HeadChain, Health, Rhythm, SourceWorld, Unfinished

DAY = timedelta(days=1)
BERLIN = ZoneInfo("Europe/Berlin")
HOST = Host("web1", "a" * 64)
OTHER_HOST = Host("web2", "b" * 64)
SOURCE_UUID = "50000000-0000-4000-8000-000000000001"
OTHER_UUID = "50000000-0000-4000-8000-000000000002"
FILESYSTEM_UUID = "f0000000-0000-4000-8000-000000000001"
NOW = datetime(2026, 6, 14, 1, 7, tzinfo=UTC)  # a Sunday, 03:07 in Berlin


def rhythm(**changes: Any) -> Rhythm:
    """Return the default schedule, weekly and every 180 days at 02:00 in Berlin."""
    default = Rhythm(Slots(time(2, 0), BERLIN), full_every=180 * DAY, incremental_every=7 * DAY)
    return replace(default, **changes)


def subvolume(uuid: str, path: str, **changes: Any) -> SubvolumeFacts:
    """Return the facts of a subvolume of the filesystem under test."""
    default = SubvolumeFacts(
        path=path,
        uuid=uuid,
        parent_uuid=None,
        received_uuid=None,
        filesystem_uuid=FILESYSTEM_UUID,
        ctransid=1000,
        otransid=7,
        read_only=False,
        created_at=NOW - 1000 * DAY,
    )
    return replace(default, **changes)


def source(**changes: Any) -> SubvolumeFacts:
    """Return the facts of the source, changed since its last backup."""
    return replace(subvolume(SOURCE_UUID, "/srv/data"), **changes)


def snapshot_uuid(sequence: int) -> str:
    """Return the UUID of the snapshot of backup `sequence`."""
    return f"70000000-0000-4000-8000-{sequence:012d}"


def snapshot_of(backup: BackupSummary, **changes: Any) -> SubvolumeFacts:
    """Return the local snapshot of a committed backup, as it should be."""
    default = subvolume(
        backup.snapshot.uuid,
        backup.snapshot.path,
        parent_uuid=backup.source.uuid,
        ctransid=backup.snapshot.ctransid,
        otransid=backup.snapshot.ctransid + 1,
        read_only=True,
    )
    return replace(default, **changes)


def backup(sequence: int, created_at: datetime, parent: BackupSummary | None = None, **changes: Any) -> BackupSummary:
    """Return a committed backup: an incremental on `parent`, or a full."""
    kind = Kind.INCREMENTAL if parent else Kind.FULL
    backup_id = f"{created_at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{'inc' if parent else 'full'}-{sequence:08x}"
    default = BackupSummary(
        manifest_sha256=f"{sequence:064x}",
        backup_id=backup_id,
        sequence=sequence,
        previous=parent.link if parent else None,
        kind=kind,
        created_at=created_at,
        committed_at=created_at + timedelta(hours=1),
        host=HOST,
        source=SourceIdentity("data", "/srv/data", SOURCE_UUID, FILESYSTEM_UUID),
        snapshot=SnapshotIdentity(
            f"data.{backup_id}", f"/srv/.b2s-snapshots/data.{backup_id}", snapshot_uuid(sequence), 100 + sequence, ()
        ),
        send_parent=parent.as_send_parent() if parent else None,
        stream_bytes=1000,
        storage_class="STANDARD",
        chunks=(ChunkSummary(f"chunks/{backup_id}/000000", 1000, "e", "c-1"),),
    )
    return replace(default, **changes)


def weekly_chain(length: int, newest_at: datetime, first_sequence: int = 1) -> list[BackupSummary]:
    """Return a full and its incrementals, a week apart."""
    made: list[BackupSummary] = []
    for index in range(length):
        at = newest_at - (length - 1 - index) * 7 * DAY
        made.append(backup(first_sequence + index, at, made[-1] if made else None))
    return made


def world(backups: list[BackupSummary] | None = None, **changes: Any) -> SourceWorld:
    """Return a healthy world in which these backups are the newest chain and the head's snapshot is here."""
    default = SourceWorld(name="data", now=NOW, rhythm=rhythm(), host_id=HOST.id, source=source())
    if backups:
        head = backups[-1]
        default = replace(
            default,
            top=head.link,
            chain=HeadChain.of(backups, Health.WHOLE),
            candidates=(snapshot_of(head),),
        )
    return replace(default, **changes)


def begun(of: BackupSummary, previous: BackupSummary | None = None) -> BackupProgress:
    """Return the journal's entry of a backup that would have become `of`."""
    intent = BackupIntent(
        backup_id=of.backup_id,
        sequence=of.sequence,
        kind=of.kind,
        reason=Reason.INTERVAL,
        store="aws/bucket/prefix",
        created_at=of.created_at,
        source=of.source,
        snapshot=of.snapshot,
        previous=previous.link if previous else None,
        send_parent=of.send_parent,
        send_parent_path=previous.snapshot.path if previous and of.send_parent else None,
        protocol=1,
        compressed_data=False,
        segment_size_bytes=1,
        chunk_size_bytes=1,
        storage_class="STANDARD",
        sse="none",
    )
    return BackupProgress(intent, {})


def interrupted(of: BackupSummary, previous: BackupSummary | None = None, **changes: Any) -> Unfinished:
    """Return an interrupted backup whose snapshots are both here."""
    default = Unfinished(
        begun(of, previous),
        snapshot=snapshot_of(of),
        send_parent=snapshot_of(previous) if previous and of.send_parent else None,
    )
    return replace(default, **changes)
