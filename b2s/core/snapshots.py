"""What a snapshot's facts tell about its source and about itself."""

from __future__ import annotations

from b2s.core.model import SubvolumeFacts


def unchanged_since(source: SubvolumeFacts, snapshot: SubvolumeFacts) -> bool:
    """Tell whether nothing was written to the source since the snapshot of it was taken.

    A snapshot is born with its source's `ctransid` and being read-only keeps it, but for deduplication; where that
    changed source and snapshot in one transaction, equal numbers mean nothing. The source's moves with every
    change of content or metadata inside it (access times too) and with nothing else: not with new or deleted
    snapshots, balance, remount, or `sync` alone.

    A change that sits only in the page cache moves `ctransid` as soon as it touches an inode, at the latest when
    it is written back; whoever wants the last milliseconds too syncs the filesystem before asking.
    Source: measured on Linux 6.18 (2026-11), tests/adapters/test_btrfs.py.
    """
    return (
        source.filesystem_uuid == snapshot.filesystem_uuid
        and snapshot.parent_uuid == source.uuid
        and snapshot.read_only
        and is_untouched(snapshot)
        and source.ctransid == snapshot.ctransid
    )


def is_untouched(snapshot: SubvolumeFacts) -> bool:
    """Say whether a snapshot, or what was received, has had no change inside since it was made.

    Deduplication changes a read-only one too. And a raw ioctl can make it writable and read-only again and leave
    `received_uuid` as it was; the transaction of the last change then lies behind that of its making. `rtransid` alone
    is too strict: what `btrfs receive` wrote may reach the disk after it recorded that transaction, and then counts as
    a change. A snapshot of it is made of what was written out, so its `otransid` is never behind.
    """
    return snapshot.ctransid <= max(snapshot.rtransid, snapshot.otransid)
