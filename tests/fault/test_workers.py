"""Uploaders that die, stop or starve (K04, K05, K10, K12): the run finishes by itself, or fails within bounds."""

from __future__ import annotations

import random
import resource
import signal
import time
from pathlib import Path

import psutil
import pytest

from b2s.adapters import children
from tests.fault.conftest import MakeRig
from tests.fault.fake_btrfs import fake_btrfs
from tests.fault.harness import MIB, SEGMENT, Rig
from tests.fault.runs import Child, Run
from tests.fault.test_kills import CHUNKS, held
from tests.parts import workspace
from tests.parts.faults import Hold


def is_connected(child: Child, rig: Rig) -> bool:
    """Tell whether the process talks to the proxy now."""
    port = int(rig.proxy.endpoint_url.rpartition(":")[2])
    try:
        connections = psutil.Process(child.pid).net_connections(kind="tcp")
    except psutil.Error:
        return False
    return any(each.raddr and each.raddr.port == port for each in connections)


def finish(rig: Rig, run: Run, *, lost: int) -> None:
    """Assert that the run ends well, that it noticed every loss, and that nothing was counted twice."""
    assert run.wait() == 0, run.tail()
    died = run.named("uploader_died") + run.named("worker_stalled")
    assert len(died) == lost, died
    (metrics,) = run.named("backup_metrics")
    assert metrics["uploaded_bytes"] == metrics["total_bytes"]
    (manifest,) = rig.stored.manifests()
    assert manifest["stream"]["bytes"] == metrics["total_bytes"]


def test_uploaders_killed_in_turn(make_rig: MakeRig) -> None:
    """K04: each uploader is killed once, two of them idle while the third is busy; the run finishes."""
    rig = make_rig(data_bytes=22 * MIB, s3={"concurrency": 3, "chunk_size": SEGMENT})
    rig.proxy.rule("CreateMultipartUpload", Hold(), times=None, key="/000000")
    run = rig.start()
    run.wait_event("process_started", child="uploader", count=3)
    run.wait_event("chunk_completed", count=4)  # all but the first: nothing else is left to do
    # The first was there long before the others, and has the first chunk: killed before them it would hand it on.
    for number, child in enumerate(reversed(run.children("uploader")), 1):
        assert child.signal(signal.SIGKILL)
        run.wait_event("uploader_died", count=number, seconds=5)
    assert sorted(event["task_lost"] for event in run.named("uploader_died")) == [False, False, True]
    rig.proxy.clear()
    finish(rig, run, lost=3)
    rig.check()


@pytest.mark.parametrize("reply", [False, True], ids=["mid-part", "before its report"])
def test_busy_uploader_killed(make_rig: MakeRig, reply: bool) -> None:
    """K05: its segment is done by another, also when S3 had it already; nothing is counted twice."""
    rig = make_rig(data_bytes=22 * MIB)
    wait = held(rig, "UploadPart", CHUNKS, reply=reply)
    run = rig.start()
    wait(run)
    busy = [child for child in run.children("uploader") if is_connected(child, rig)]
    assert busy[0].signal(signal.SIGKILL)
    run.wait_event("uploader_died", task_lost=True, seconds=5)
    rig.proxy.clear()
    finish(rig, run, lost=1)
    rig.check()


def test_uploader_killed_while_it_completes(make_rig: MakeRig) -> None:
    """K05: killed between S3's answer to Complete and its report, the chunk is stored once."""
    rig = make_rig(data_bytes=22 * MIB)
    rig.proxy.rule("CompleteMultipartUpload", Hold(reply=True), key=CHUNKS)
    run = rig.start()
    workspace.poll(lambda: bool(rig.proxy.in_flight("CompleteMultipartUpload")), seconds=20, what="Complete")
    workspace.poll(
        lambda: (
            any(call.upstream_status == 200 for call in rig.proxy.in_flight("CompleteMultipartUpload"))
            or time.monotonic() > run.started + 20
        ),
        seconds=25,
        what="Complete was done",
    )
    for child in run.children("uploader"):
        child.signal(signal.SIGKILL)
    assert run.wait() == 0, run.tail()
    rig.check()


def test_stopped_uploader_is_replaced(make_rig: MakeRig) -> None:
    """K10: an uploader that moves no byte for `stall_timeout` is ended and its segment done by another."""
    rig = make_rig(data_bytes=22 * MIB, s3={"stall_timeout": "2s", "read_timeout": "30s"})
    wait = held(rig, "UploadPart", CHUNKS)
    run = rig.start()
    wait(run)
    busy = [child for child in run.children("uploader") if is_connected(child, rig)]
    assert busy[0].signal(signal.SIGSTOP)
    rig.proxy.clear()
    stalled = run.wait_event("worker_stalled", seconds=10)
    assert stalled["child_pid"] == busy[0].pid
    finish(rig, run, lost=1)
    rig.check()


@pytest.mark.parametrize("process", ["chunker", "btrfs"])
def test_stream_that_stands_still_ends_the_run(make_rig: MakeRig, process: str) -> None:
    """K10: with the chunker or `btrfs send` stopped nothing comes any more: the run ends and names both."""
    rig = make_rig(data_bytes=32 * MIB, s3={"stall_timeout": "2s"})
    wait = held(rig, "UploadPart", CHUNKS, nth=2)
    run = rig.start()
    wait(run)
    child = run.child(process)
    assert child.signal(signal.SIGSTOP)
    rig.proxy.clear()
    run.wait(30)
    last = rig.assert_failed(run)
    for each in ("btrfs", "chunker"):
        assert str(run.all_children(each)[0].pid) in last["error"], last
    rig.assert_nothing_runs()
    assert rig.run_clean().wait_event("backup_resumed")["reused_bytes"] >= SEGMENT
    rig.check()


def test_slow_send_is_not_taken_for_a_stalled_one(make_rig: MakeRig, tmp_path: Path) -> None:
    """K10: a send that is busy and silent far longer than `stall_timeout` is waited for."""
    busy = 'end=$(($(date +%s) + 8)); while [ "$(date +%s)" -lt "$end" ]; do :; done; real'
    rig = make_rig(data_bytes=MIB, s3={"stall_timeout": "2s"})
    home = fake_btrfs(tmp_path, busy)
    run = rig.run(environment={"PATH": f"{home}:/usr/bin:/bin"})
    assert run.process.returncode == 0, run.tail()
    assert run.last["elapsed_seconds"] > 6
    rig.check()


def kill_at_random(rig: Rig, kills: int, seed: int) -> Run:
    """Kill random uploaders of one run, `kills` in all, at random moments; return the run, still going on."""
    rng = random.Random(seed)
    run = rig.start()
    run.wait_event("process_started", child="uploader")
    killed: set[int] = set()
    while len(killed) < kills:
        assert run.process.poll() is None, f"over after {len(killed)} kills: {run.tail()}"
        time.sleep(rng.uniform(0.02, 0.5))  # the fault's random moment, not a wait for anything
        living = [child for child in run.children("uploader") if child.pid not in killed]
        if living and (chosen := rng.choice(living)).signal(signal.SIGKILL):
            killed.add(chosen.pid)
    return run


def test_uploaders_killed_at_random(make_rig: MakeRig) -> None:
    """K04: a sample of the hundred kills below."""
    rig = make_rig(data_bytes=32 * MIB, s3={"concurrency": 3, "max_bandwidth": 6 * MIB})
    finish(rig, kill_at_random(rig, 10, seed=4), lost=10)
    rig.check()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_hundred_uploaders_killed(make_rig: MakeRig) -> None:
    """K04, issue 3's bar: a hundred random SIGKILLs of uploaders in one run; it finishes by itself, equal."""
    rig = make_rig(data_bytes=160 * MIB, s3={"concurrency": 4, "max_bandwidth": 4 * MIB, "chunk_size": 4 * SEGMENT})
    run = kill_at_random(rig, 100, seed=100)
    rig.write_config(s3={"max_bandwidth": None})
    assert run.wait(240) == 0, run.tail()
    finish(rig, run, lost=100)
    rig.check()


def test_fork_server_killed(make_rig: MakeRig) -> None:
    """K04: with the process that starts the others all of them end: the run fails soon, says so, and can go on."""
    rig = make_rig(data_bytes=32 * MIB)
    wait = held(rig, "UploadPart", CHUNKS, nth=3)
    run = rig.start()
    wait(run)
    server = psutil.Process(run.child("uploader").pid).parent()
    assert server is not None and server.pid != run.process.pid
    descendants = run.descendants()
    server.kill()
    rig.proxy.clear()
    run.wait(20)
    rig.assert_failed(run)
    run.assert_gone(descendants)
    rig.assert_nothing_runs()
    assert rig.run_clean().wait_event("backup_resumed")["reused_bytes"] > 0
    rig.check()


def _stands_still(run: Run) -> bool:
    before = children.activity([run.process.pid])
    time.sleep(0.2)  # the time in which something may happen, not a wait
    return children.activity([run.process.pid]) == before


def test_fork_server_killed_while_it_starts_the_first(make_rig: MakeRig) -> None:
    """K04: killed before anybody else is there, it fails the source it was needed for, and not as a bug."""
    rig = make_rig(data_bytes=6 * MIB)
    run = rig.start()
    workspace.poll(lambda: run.fork_server() is not None, seconds=10, what="the fork server begins")
    server = run.fork_server()
    assert server is not None
    server.suspend()
    run.wait_event("send_started")
    # Killed before it was asked for a process it would be replaced, and nothing would fail.
    workspace.poll(lambda: _stands_still(run), seconds=10, what="the supervisor waits for the fork server")
    server.kill()
    run.wait(20)
    assert rig.assert_failed(run)["error_class"] == "WorkerFailed"
    assert run.named("backup_failed")
    rig.assert_nothing_runs()
    rig.check()


@pytest.mark.parametrize("limit_mib", [40, 90, 150, 260])
def test_memory_limit(make_rig: MakeRig, limit_mib: int) -> None:
    """K12: with too little address space it fails, soon, and says nothing is done; with enough it is done."""
    rig = make_rig(data_bytes=6 * MIB)
    run = rig.start(before=("prlimit", f"--as={limit_mib * MIB}", "--"))
    code = run.wait(60)
    assert (code == 0) == (len(rig.stored.manifests()) == 1), run.tail()
    assert code in (0, 1), run.tail()
    rig.check()


@pytest.mark.parametrize("process", ["uploader", "chunker", "btrfs"])
def test_memory_limit_of_one_process(make_rig: MakeRig, process: str) -> None:
    """K12: one process gets no more memory or files from now on: the run ends, well or not, and can go on."""
    rig = make_rig(data_bytes=32 * MIB)
    wait = held(rig, "UploadPart", CHUNKS, nth=2)
    run = rig.start()
    wait(run)
    child = run.child(process)
    resource.prlimit(child.pid, resource.RLIMIT_AS, (MIB, MIB))
    resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (3, 3))
    rig.proxy.clear()
    if run.wait(60) != 0:
        rig.assert_failed(run)
        assert rig.stored.manifests() == []
    rig.assert_nothing_runs()
    rig.check()
