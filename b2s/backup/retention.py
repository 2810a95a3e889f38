"""Delete b2s's own snapshots that nothing needs any more, and know again which are its own."""

from __future__ import annotations

from b2s.adapters import btrfs
from b2s.adapters.state import OwnSnapshot
from b2s.backup.manifests import ManifestCache
from b2s.backup.run_parts import RunParts
from b2s.core import events
from b2s.core.layout import parse_backup_id
from b2s.core.model import SubvolumeFacts
from b2s.core.retention import no_longer_needed
from b2s.core.settings import SourceSettings
from b2s.errors import BtrfsError, NotASubvolume, SourceMissing, Stopped


def prune(parts: RunParts, source: SourceSettings) -> None:
    """Keep the newest `retain` snapshots of the source and what is still needed; delete the rest.

    The snapshot of the newest backup is the send parent of the next incremental; while this host does not know
    which one that is, nothing is deleted.
    """
    cache = ManifestCache(parts.state, parts.store, source.name)
    sequence = cache.newest()
    head = cache.get(sequence) if sequence is not None else None
    if head is None:
        return
    needed = {head.backup.snapshot.uuid}
    for progress in parts.state.unfinished():
        needed.add(progress.intent.snapshot.uuid)
        if progress.intent.send_parent is not None:
            needed.add(progress.intent.send_parent.snapshot_uuid)
    recorded = {snapshot.uuid: snapshot for snapshot in parts.state.own_snapshots(source.name) if snapshot.uuid}
    own = []
    for snapshot in recorded.values():
        try:
            facts = btrfs.subvolume_facts(snapshot.path)
        except (SourceMissing, NotASubvolume):
            parts.state.forget_snapshot_path(snapshot.path)
            continue
        if facts.uuid == snapshot.uuid:
            own.append(facts)
        else:
            parts.state.forget_snapshot_path(snapshot.path)  # another subvolume has that name now
    try:
        for facts in no_longer_needed(own, needed, parts.settings.snapshots_of(source).retain):
            with parts.stop.interrupting():  # it waits for the disk
                delete_own(parts, recorded[facts.uuid])
    except Stopped:
        return  # the backup is made all the same; the next run deletes what is left


def delete_unfinished(parts: RunParts, source: SourceSettings) -> None:
    """Delete snapshots that were announced and belong to no backup, begun or committed: a run died in between."""
    begun = {progress.intent.backup_id: progress.intent for progress in parts.state.unfinished()}
    for snapshot in parts.state.own_snapshots(source.name):
        if snapshot.uuid is not None:
            continue
        intent = begun.get(snapshot.backup_id or "")
        if intent is None:
            delete_own(parts, snapshot)
        else:  # killed before its UUID was noted; once committed it would look as if it belonged to nothing
            parts.state.record_snapshot(source.name, snapshot.path, intent.snapshot.uuid, intent.backup_id)


def delete_own(parts: RunParts, snapshot: OwnSnapshot) -> None:
    """Delete one snapshot that the state names as ours, if its path still holds that very subvolume.

    A busy one, and one that cannot be deleted today, waits for the next run: that is no reason to fail a backup.
    """
    try:
        facts = btrfs.subvolume_facts(snapshot.path)
    except (SourceMissing, NotASubvolume):
        parts.state.forget_snapshot_path(snapshot.path)
        return
    if snapshot.uuid is None or facts.uuid == snapshot.uuid:
        try:
            btrfs.delete_subvolume(snapshot.path)
        except BtrfsError as error:
            parts.log.warning(events.SNAPSHOT_PRUNED, path=snapshot.path, deleted=False, error=error.message)
            return
        parts.log.info(events.SNAPSHOT_PRUNED, path=snapshot.path, uuid=facts.uuid, deleted=True)
    parts.state.forget_snapshot_path(snapshot.path)  # deleted, or another subvolume has that name now


def recognise(parts: RunParts, source: SourceSettings, subvolume: SubvolumeFacts) -> None:
    """Write down snapshots of ours that the state does not know: it was lost, by this run or an earlier one.

    Ours is what lies in `base_dir`, is read-only, was taken of this very source and bears a name only b2s gives.
    """
    known = {snapshot.path for snapshot in parts.state.own_snapshots(source.name)}
    for facts in btrfs.list_snapshots(parts.settings.snapshots_of(source).base_dir):
        name = facts.path.rsplit("/", 1)[1]
        backup_id = name.removeprefix(f"{source.name}.")
        ours = name != backup_id and parse_backup_id(backup_id) is not None and facts.parent_uuid == subvolume.uuid
        if ours and facts.read_only and facts.path not in known:
            parts.state.record_snapshot(source.name, facts.path, facts.uuid, backup_id)
