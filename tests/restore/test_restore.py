"""Restores of whole chains on another filesystem, compared entry by entry."""

from __future__ import annotations

from collections.abc import Callable

from b2s.adapters.btrfs import subvolume_facts
from b2s.restore.run import Verified
from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import SeaweedServer
from tests.parts.tree import differences, tree_digest
from tests.restore.conftest import Origin


def test_chain_restores_equal_on_another_filesystem(
    make_origin: Callable[..., Origin], seaweed: SeaweedServer, loopfs: Callable[..., LoopFilesystem]
) -> None:
    """A full and two incrementals come back equal, writable, with the last one kept read-only."""
    origin = make_origin(seaweed)
    origin.change_and_back_up()
    newest = origin.change_and_back_up()
    elsewhere = loopfs()
    target = elsewhere.path / "restored"
    restore = origin.restorer()
    restored = restore(target)
    assert differences(tree_digest(newest), tree_digest(target)) == []
    assert (restored.received_backups, restored.reused_backups) == (3, 0)
    assert restored.verified is Verified.CONTENT
    facts = subvolume_facts(str(target))
    assert not facts.read_only
    assert facts.received_uuid is None
    kept = list((elsewhere.path / ".b2s-received" / "data").iterdir())
    assert [path.name for path in kept] == [origin.uploader.stored[-1].manifest.backup_id]
    kept_facts = subvolume_facts(str(kept[0]))
    assert kept_facts.read_only
    assert kept_facts.received_uuid == subvolume_facts(str(newest)).uuid
    assert facts.parent_uuid == kept_facts.uuid
    (metrics,) = restore.log.named("restore_metrics")
    assert metrics["total_bytes"] == sum(stored.manifest.stream.bytes for stored in origin.uploader.stored)
    assert metrics["peak_spool_bytes"] <= 4 * origin.uploader.segment_bytes
