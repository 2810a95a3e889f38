"""The main job, end to end, by the commands a user types: backups of a nasty tree, and every way back."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from b2s.core.sizing import memory_bytes_max, spool_slots
from tests.parts.loopfs import LoopFilesystem
from tests.parts.tree import Tree, change_tree, differences, nasty_tree, tree_digest
from tests.system.commands import Done
from tests.system.site import MIB, SOURCE, MakeSite, Site, facts_of, receive_chain

SEGMENT = 5 * MIB
CONCURRENCY = 3
INCREMENTALS = 5
SPOOL = spool_slots(on_disk=False, size_bytes=0, segment_size_bytes=SEGMENT, concurrency=CONCURRENCY)
TREE_BYTES_MAX = 300 * MIB  # the bar for all processes together, beside the spool


@dataclass(frozen=True, slots=True)
class Told:
    """A host after a full backup and incrementals, and what it looked like at each."""

    site: Site
    runs: list[Done]
    states: list[Tree]


def back_up_and_change(site: Site, backups: int) -> Told:
    """Make a nasty tree and back it up, then change it and back it up again, `backups` times in all."""
    nasty_tree(site.source, seed=1, size_bytes=24 * MIB)
    told = Told(site, [], [])
    for number in range(backups):
        if number:
            change_tree(site.source, seed=number)
        told.runs.append(site.backup("--once", sample_memory=True))
        told.states.append(tree_digest(site.source))
    return told


def restore(site: Site, target: Path, *options: str) -> Done:
    """Restore on a host that has no config and no state."""
    done = site.b2s.succeed("restore", *site.where(), "--source", SOURCE, "--target", target, *options)
    assert done.last["event"] == "run_finished"
    return done


def assert_equal(state: Tree, restored: Path) -> None:
    """Assert that names, data, xattrs, modes, owners, times and links are those of `state`."""
    assert differences(state, tree_digest(restored)) == []


def assert_metrics(run: Done, kind: str) -> None:
    """Assert that the run told what it did, that its sums are right, and that it kept its bounds."""
    metrics = run.event("backup_metrics")
    assert metrics["source"] == SOURCE
    assert metrics["kind"] == kind
    assert metrics["total_bytes"] == metrics["uploaded_bytes"] + metrics["reused_bytes"]
    assert metrics["reused_bytes"] == 0
    assert metrics["elapsed_seconds"] > 0
    rate = metrics["total_bytes"] / metrics["elapsed_seconds"]
    assert metrics["throughput_bytes_per_second"] == pytest.approx(rate, rel=0.01)
    assert float(metrics["throughput"].split()[0]) < 1000
    assert metrics["segments"] == -(-metrics["total_bytes"] // SEGMENT)
    assert metrics["chunks"] == -(-metrics["total_bytes"] // (2 * SEGMENT))
    assert metrics["retries"] == 0
    assert 0 < metrics["peak_spool_bytes"] <= SPOOL.budget_bytes
    assert run.peak_spool_bytes <= metrics["peak_spool_bytes"]  # what it says is what can be seen from outside
    memory_max = memory_bytes_max(SPOOL, on_disk=False, segments=metrics["segments"])
    assert 0 < run.peak_pss_bytes < min(memory_max, TREE_BYTES_MAX + SPOOL.budget_bytes)
    started = Counter(event["process"] for event in run.events if event["event"] == "process_started")
    uploaders = started.pop("uploader")  # as many as there is work for
    assert 1 <= uploaders <= min(CONCURRENCY, metrics["segments"])
    assert started == {"btrfs": 1, "chunker": 1}
    assert run.events[0]["event"] == "run_started"
    assert run.last["event"] == "run_finished"
    assert run.last["exit_code"] == 0


@pytest.mark.timeout(240)
def test_main_job(make_site: MakeSite, loopfs: Callable[..., LoopFilesystem]) -> None:
    """A full and five incrementals come back equal on another filesystem, with b2s and without it."""
    site = make_site(segment_size=SEGMENT, chunk_size=2 * SEGMENT, concurrency=CONCURRENCY)
    told = back_up_and_change(site, 1 + INCREMENTALS)
    for run, kind in zip(told.runs, ["full"] + ["incremental"] * INCREMENTALS, strict=True):
        assert_metrics(run, kind)
    site.assert_clean()

    manifests = site.manifests()
    assert [manifest["kind"] for manifest in manifests] == ["full"] + ["incremental"] * INCREMENTALS
    assert [manifest["stream"]["bytes"] for manifest in manifests] == [
        run.event("backup_metrics")["total_bytes"] for run in told.runs
    ]
    assert [(manifest["send_parent"] or {}).get("snapshot_uuid") for manifest in manifests] == [
        None,
        *(manifest["snapshot"]["uuid"] for manifest in manifests[:-1]),
    ]

    elsewhere = loopfs(size_bytes=512 * MIB).path
    done = restore(site, elsewhere / "newest", "--keep", "all")
    assert_equal(told.states[-1], elsewhere / "newest")
    assert_kept_chain(elsewhere / ".b2s-received" / SOURCE, manifests, elsewhere / "newest")
    metrics = done.event("restore_metrics")
    assert metrics["total_bytes"] == sum(manifest["stream"]["bytes"] for manifest in manifests)
    assert metrics["peak_spool_bytes"] <= (4 + 2) * SEGMENT  # restore.concurrency is 4 without a config

    restore(site, elsewhere / "third", "--backup", manifests[2]["backup_id"], "--keep", "all")
    assert_equal(told.states[2], elsewhere / "third")
    site.assert_clean()

    # On a filesystem of its own: `btrfs receive` would take any copy of a send parent that it finds.
    received = receive_chain(site, manifests, loopfs(size_bytes=512 * MIB).path / "received")
    for path, state in zip(received, told.states, strict=True):
        assert_equal(state, path)
    assert_received_chain(received, manifests)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_point_comes_back(make_site: MakeSite, loopfs: Callable[..., LoopFilesystem]) -> None:
    """Each of ten points restores equal, on its own filesystem without anything received before."""
    site = make_site(segment_size=SEGMENT, chunk_size=2 * SEGMENT, concurrency=CONCURRENCY)
    told = back_up_and_change(site, 10)
    for number, (manifest, state) in enumerate(zip(site.manifests(), told.states, strict=True)):
        with LoopFilesystem(size_bytes=512 * MIB) as elsewhere:
            restore(site, elsewhere.path / f"point-{number}", "--backup", manifest["backup_id"], "--keep", "none")
            assert_equal(state, elsewhere.path / f"point-{number}")
            assert sorted(path.name for path in (elsewhere.path / ".b2s-received").glob("*/*")) == []
    site.assert_clean()


def assert_kept_chain(directory: Path, manifests: list[dict[str, Any]], target: Path) -> None:
    """Assert that each received subvolume is read-only and known by the UUID it was sent under; the target writable."""
    kept = [facts_of(directory / manifest["backup_id"]) for manifest in manifests]
    assert [facts["Received UUID"] for facts in kept] == [manifest["snapshot"]["uuid"] for manifest in manifests]
    assert all("readonly" in facts["Flags"] for facts in kept)
    restored = facts_of(target)
    assert restored["Parent UUID"] == kept[-1]["UUID"]
    assert "readonly" not in restored["Flags"]
    assert restored["Received UUID"] == "-"


def assert_received_chain(received: list[Path], manifests: list[dict[str, Any]]) -> None:
    """Assert that every received subvolume hangs from the one before."""
    facts = [facts_of(path) for path in received]
    assert [each["Received UUID"] for each in facts] == [manifest["snapshot"]["uuid"] for manifest in manifests]
    assert [each["Parent UUID"] for each in facts[1:]] == [each["UUID"] for each in facts[:-1]]


def test_spool_on_disk_keeps_its_size(make_site: MakeSite, tmp_path: Path) -> None:
    """A slow network fills the spool up to `spool.size` and not beyond; memory holds no segment."""
    segment, size = SEGMENT, 4 * SEGMENT + 1  # room for four
    site = make_site(segment_size=segment, chunk_size=20 * segment, concurrency=2, max_bandwidth=8 * MIB)
    site.settings["spool"] = {"enabled": True, "dir": str(tmp_path / "spool"), "size": size}
    for number in range(6):
        (site.source / f"file-{number}").write_bytes(os.urandom(segment))
    run = site.backup(sample_memory=True, spools=tmp_path / "spool")
    assert run.event("backup_metrics")["peak_spool_bytes"] == run.peak_spool_bytes == 4 * segment
    assert run.event("backup_metrics")["segments"] == 7
    assert list((tmp_path / "spool").iterdir()) == []
    site.assert_clean()


def test_nothing_due_changes_nothing(make_site: MakeSite) -> None:
    """A second call right after a backup exits 0, says why it does nothing, and stores nothing."""
    site = make_site(segment_size=SEGMENT, chunk_size=2 * SEGMENT)
    (site.source / "file").write_bytes(b"content")
    site.backup()
    again = site.backup()
    decided = again.event("plan_decided")
    assert (decided["action"], decided["reason"]) == ("skip", "not_due")
    assert len(site.manifests()) == 1
    assert len(list(site.snapshots.iterdir())) == 1
    site.assert_clean()


def test_nested_subvolume_is_told(make_site: MakeSite, loopfs: Callable[..., LoopFilesystem]) -> None:
    """What a snapshot leaves out is warned of when it is made, recorded, and told again by a restore."""
    site = make_site(segment_size=SEGMENT, chunk_size=2 * SEGMENT)
    nested = site.filesystem.subvolume(f"{SOURCE}/nested")
    (nested / "file").write_bytes(b"not in the backup")
    warned = site.backup().event("nested_subvolumes_absent")
    assert (warned["level"], warned["nested_subvolumes"], warned["first"]) == ("warning", 1, "nested")
    assert site.manifests()[0]["snapshot"]["nested_subvolumes"] == ["nested"]
    target = loopfs().path / "restored"
    assert restore(site, target).event("nested_subvolumes_absent")["first"] == "nested"
    assert not (target / "nested").exists()


def test_incremental_after_restore_applies(make_site: MakeSite, loopfs: Callable[..., LoopFilesystem]) -> None:
    """I8: a later incremental is received alone, onto what an earlier restore kept."""
    site = make_site(segment_size=SEGMENT, chunk_size=2 * SEGMENT)
    nasty_tree(site.source, seed=2, size_bytes=6 * MIB)
    site.backup()
    elsewhere = loopfs(size_bytes=512 * MIB).path
    restore(site, elsewhere / "first")
    change_tree(site.source, seed=3)
    site.backup("--once")
    done = restore(site, elsewhere / "second")
    assert done.event("restore_metrics")["backups"] == 1
    assert_equal(tree_digest(site.source), elsewhere / "second")
    kept = list((elsewhere / ".b2s-received" / SOURCE).iterdir())
    assert [path.name for path in kept] == [site.manifests()[-1]["backup_id"]]
    subprocess.run(["btrfs", "subvolume", "delete", elsewhere / "first"], check=True, capture_output=True)
    site.assert_clean()
