"""SIGKILL of the supervisor, of `btrfs send` and of the chunker, at the moments that matter (K01 to K03, K06, K07)."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fault.conftest import MakeRig
from tests.fault.fake_btrfs import fake_btrfs
from tests.fault.harness import MIB, SEGMENT, Rig
from tests.fault.runs import Run
from tests.parts import workspace
from tests.parts.faults import Hold

CHUNKS = "/chunks/"
MANIFESTS = "/manifests/"


def held(rig: Rig, operation: str, key: str, *, reply: bool = False, nth: int = 1) -> Callable[[Run], None]:
    """Hold the `nth` such call and all later ones; return what waits until one is held (its reply: has come)."""
    rig.proxy.rule(operation, Hold(reply=reply), nth=nth, times=None, key=key)

    def wait(run: Run) -> None:
        def there() -> bool:
            assert run.process.poll() is None, run.tail()
            return any(
                isinstance(call.fault, Hold) and (not reply or call.upstream_status is not None)
                for call in rig.proxy.in_flight(operation)
            )

        workspace.poll(there, seconds=30, what=f"{operation} is held")

    return wait


@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
def test_supervisor_killed_in_mid_send(make_rig: MakeRig, on_disk: bool) -> None:
    """K01: its children end at once, and the next run sends only what was in flight again."""
    rig = make_rig(data_bytes=32 * MIB, spool={"enabled": on_disk})
    wait = held(rig, "UploadPart", CHUNKS, nth=5)
    run = rig.start()
    wait(run)
    run.kill()
    assert rig.lock_path.exists(), "it was killed while it held the lock"
    assert rig.stored.manifests() == []
    rig.proxy.clear()
    again = rig.run_clean()
    assert again.named("lock_stale_removed", holder_pid=run.process.pid)
    assert not on_disk or again.named("orphan_removed", what="spool")  # in memory any other run may have swept it
    assert again.wait_event("backup_resumed")["reused_bytes"] >= 2 * SEGMENT
    (metrics,) = again.named("backup_metrics")
    assert metrics["uploaded_bytes"] + metrics["reused_bytes"] == metrics["total_bytes"]
    workspace.poll(lambda: not rig.proxy.in_flight(), seconds=5, what="the proxy is idle")
    assert rig.part_bytes() <= metrics["total_bytes"] + 2 * SEGMENT
    rig.check()
    assert len(rig.stored.manifests()) == 1


PHASES: dict[str, Callable[[Rig], Callable[[Run], Any]]] = {
    "lock": lambda rig: lambda run: workspace.poll(rig.lock_path.exists, seconds=20, what="the lock is taken"),
    "plan": lambda rig: lambda run: run.wait_event("plan_decided"),
    "snapshot": lambda rig: lambda run: run.wait_event("snapshot_created"),
    "send": lambda rig: lambda run: run.wait_event("send_started"),
    "probe": lambda rig: held(rig, "UploadPart", "", reply=True),
    "create lost": lambda rig: held(rig, "CreateMultipartUpload", CHUNKS, reply=True),
    "first part": lambda rig: held(rig, "UploadPart", CHUNKS),
    "before complete": lambda rig: held(rig, "CompleteMultipartUpload", CHUNKS),
    "after complete": lambda rig: held(rig, "CompleteMultipartUpload", CHUNKS, reply=True),
    "after last complete": lambda rig: held(rig, "CompleteMultipartUpload", CHUNKS, reply=True, nth=2),
    "chunk reported": lambda rig: lambda run: run.wait_event("chunk_completed"),
    "before manifest": lambda rig: held(rig, "PutObject", MANIFESTS),
    "after manifest": lambda rig: held(rig, "PutObject", MANIFESTS, reply=True),
    "committed": lambda rig: lambda run: run.wait_event("manifest_committed"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_supervisor_killed_in_phase(make_rig: MakeRig, phase: str) -> None:
    """K02: wherever it dies, the next run exits 0 and there is one backup, whole, and nothing else."""
    rig = make_rig(data_bytes=11 * MIB)
    reached = PHASES[phase](rig)
    run = rig.start()
    reached(run)
    run.kill()
    rig.check()
    assert len(rig.stored.manifests()) == 1


@pytest.mark.parametrize("request_", ["--full", "--once"])
def test_supervisor_killed_in_the_probe_of_what_was_not_due(make_rig: MakeRig, request_: str) -> None:
    """K02, I6: it had written nothing of a backup down, and the next run has nothing to do but to tidy up."""
    rig = make_rig(data_bytes=MIB)
    rig.run_clean()
    reached = held(rig, "UploadPart", "", reply=True)
    run = rig.start(request_)
    reached(run)
    run.kill()
    again = rig.run_clean()
    assert again.named("orphan_removed", what="multipart upload")
    assert again.wait_event("plan_decided")["action"] == "skip"
    rig.check()
    assert len(rig.stored.manifests()) == 1
    assert not rig.run_clean().named("orphan_removed"), "told once"


def test_supervisor_killed_while_pruning(make_rig: MakeRig) -> None:
    """K02: a snapshot whose deletion was interrupted is deleted by the next run."""
    rig = make_rig(data_bytes=MIB, snapshots={"retain": 1})
    rig.run_clean()
    rig.fill(MIB, seed=2)
    run = rig.start("--once")
    run.wait_event("manifest_committed")
    run.kill()
    rig.check()
    assert len(rig.own_snapshots()) == 1
    assert [manifest["kind"] for manifest in rig.stored.manifests()] == ["full", "incremental"]


def test_commit_whose_news_was_lost(make_rig: MakeRig) -> None:
    """K07: killed between manifest and state, the next run finds the commit in the bucket and goes on from it."""
    rig = make_rig(data_bytes=6 * MIB)
    wait = held(rig, "PutObject", MANIFESTS, reply=True)
    run = rig.start()
    wait(run)
    run.kill()
    assert len(rig.stored.manifests()) == 1
    rig.proxy.clear()
    sent = rig.part_bytes()
    again = rig.run_clean()
    assert rig.part_bytes() == sent, "nothing is uploaded again"
    assert not again.named("manifest_committed")
    rig.fill(MIB, seed=2)
    rig.run_clean("--once")
    rig.check()
    assert [manifest["kind"] for manifest in rig.stored.manifests()] == ["full", "incremental"]


def test_parts_that_nobody_wrote_down(rig: Rig) -> None:
    """K01: killed before the news of parts came, then again after their chunk was completed: it is still known."""
    held(rig, "UploadPart", CHUNKS, reply=True)
    first = rig.start()
    workspace.poll(
        lambda: sum(call.upstream_status == 200 for call in rig.proxy.in_flight("UploadPart")) == 2,
        seconds=30,
        what="the store has two parts",
    )
    first.kill()
    rig.proxy.clear()
    held(rig, "UploadPart", "/000002")
    second = rig.start()
    second.wait_event("chunk_completed", chunk_index=0)
    second.kill()
    rig.proxy.clear()
    third = rig.run_clean()
    assert third.named("plan_decided", action="resume")
    assert third.wait_event("backup_resumed")["reused_bytes"] >= 2 * SEGMENT
    rig.check()
    assert len(rig.stored.manifests()) == 1


def test_send_killed(rig: Rig) -> None:
    """K03: a killed `btrfs send` is a failure that names the signal; nothing is committed, and it can go on."""
    wait = held(rig, "UploadPart", CHUNKS, nth=3)
    run = rig.start()
    wait(run)
    assert run.child("btrfs").signal(signal.SIGKILL)
    rig.proxy.clear()
    run.wait(20)
    last = rig.assert_failed(run)
    assert "btrfs send" in last["error"]
    assert "SIGKILL" in last["error"]
    assert run.named("backup_failed")
    rig.assert_nothing_runs()
    assert rig.stored.manifests() == []
    assert rig.run_clean().wait_event("backup_resumed")["reused_bytes"] >= SEGMENT
    rig.check()


def test_chunker_killed_between_segments(rig: Rig) -> None:
    """K06: just after it announced a segment; the run fails soon and can go on."""
    wait = held(rig, "UploadPart", CHUNKS, nth=2)
    run = rig.start()
    wait(run)
    _kill_chunker(rig, run)
    rig.check()


def test_chunker_killed_in_mid_segment(rig: Rig, tmp_path: Path) -> None:
    """K06: what it had read of a segment is never stored."""
    pausing = fake_btrfs(tmp_path, 'real | { head -c 13000000; touch "$PAUSED"; sleep 60; cat; }')
    paused = tmp_path / "paused"
    run = rig.start(environment={"PATH": f"{pausing}:/usr/bin:/bin", "PAUSED": str(paused)})
    workspace.poll(paused.exists, seconds=20, what="send pauses in the third segment")
    workspace.poll(lambda: len(rig.proxy.history("UploadPart", key=CHUNKS)) >= 2, seconds=10, what="two parts")
    _kill_chunker(rig, run)
    sizes = {call.request_bytes for call in rig.proxy.history("UploadPart", key=CHUNKS)}
    assert sizes == {SEGMENT}, "a short segment was sent"
    rig.check()


def _kill_chunker(rig: Rig, run: Run) -> None:
    assert run.child("chunker").signal(signal.SIGKILL)
    rig.proxy.clear()
    run.wait(10)
    last = rig.assert_failed(run)
    assert re.search("chunker.*-9|chunker.*SIGKILL", last["error"]), last
    rig.assert_nothing_runs()
    assert rig.stored.manifests() == []
