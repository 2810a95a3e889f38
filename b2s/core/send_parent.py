"""Which local snapshot an incremental may hang from.

A wrong send parent gives an incremental that is silently wrong, so every doubt is a reason for a full. The
snapshot is looked for by UUID, never by name.

- Its own UUID is the one in the manifest: it must be read-only and have the `ctransid` the manifest says. One
  that was made writable, edited and made read-only again has another.
- Its `received_uuid` is the one in the manifest: its own `ctransid` is of this filesystem and says nothing (it
  still moves after the receive, while the data is written back). The `ctransid` that came with the stream
  (`stransid`) must be the manifest's. `btrfs property set` forgets `received_uuid` when it makes a received
  subvolume writable, so an edited one is not found at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from b2s.core.manifest import SnapshotIdentity
from b2s.core.model import Reason, SubvolumeFacts
from b2s.core.snapshots import is_untouched, unchanged_since


@dataclass(frozen=True, slots=True)
class SendParentChoice:
    """The chosen snapshot, or why there is none."""

    snapshot: SubvolumeFacts | None
    reason: Reason | None  # None exactly where there is a snapshot
    detail: str = ""


def choose_send_parent(
    wanted: SnapshotIdentity, source: SubvolumeFacts, candidates: Sequence[SubvolumeFacts]
) -> SendParentChoice:
    """Return the best local snapshot that is what `wanted` says, or the reason why none is."""
    here = [snapshot for snapshot in candidates if snapshot.filesystem_uuid == source.filesystem_uuid]
    here = [snapshot for snapshot in here if wanted.uuid in (snapshot.uuid, snapshot.received_uuid)]
    # The snapshot itself before a received copy; of the copies the one that shares its extents with the source.
    here.sort(key=lambda found: (found.uuid != wanted.uuid, found.uuid != source.parent_uuid, found.path))
    doubts = []
    for snapshot in here:
        doubt = doubt_about(wanted, snapshot)
        if doubt is None:
            return SendParentChoice(snapshot, None)
        doubts.append(doubt)
    if doubts:
        return doubts[0]
    detail = f"snapshot {wanted.name} (UUID {wanted.uuid}) of the last backup is not here any more"
    return SendParentChoice(None, Reason.SEND_PARENT_MISSING, detail)


def doubt_about(wanted: SnapshotIdentity, snapshot: SubvolumeFacts) -> SendParentChoice | None:
    """Return why this snapshot cannot be trusted to be what `wanted` says; None when it can."""
    if not snapshot.read_only:
        detail = f"snapshot {snapshot.path} is not read-only"
        return SendParentChoice(None, Reason.SEND_PARENT_WRITABLE, detail)
    if snapshot.uuid == wanted.uuid:
        if snapshot.ctransid == wanted.ctransid:
            return None
        detail = f"snapshot {snapshot.path} was changed: its ctransid is {snapshot.ctransid}, not {wanted.ctransid}"
        return SendParentChoice(None, Reason.SEND_PARENT_CHANGED, detail)
    if snapshot.stransid == wanted.ctransid:
        return None
    detail = f"{snapshot.path} was received from ctransid {snapshot.stransid}, not {wanted.ctransid}"
    return SendParentChoice(None, Reason.SEND_PARENT_CHANGED, detail)


def is_unchanged(source: SubvolumeFacts, send_parent: SubvolumeFacts) -> bool:
    """Return whether nothing was written to the source since its snapshot `send_parent`.

    Or since it was itself made from `send_parent`, as a restored source is: a snapshot is born with the
    `ctransid` of what it is a snapshot of, in either direction. Equal numbers of subvolumes that are not so
    related mean nothing.
    """
    made_from_it = source.parent_uuid == send_parent.uuid and source.ctransid == send_parent.ctransid
    return unchanged_since(source, send_parent) or (made_from_it and is_untouched(send_parent))
