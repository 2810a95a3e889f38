"""Going on with what was interrupted, whatever changed meanwhile: settings, the stream, the sources (B08, B09, C04).

What is stored already is known by its hash alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import random
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.conftest import MakeRig
from tests.fault.fake_btrfs import fake_btrfs
from tests.fault.harness import MIB, SEGMENT, Rig
from tests.fault.runs import Run
from tests.fault.stored import StoredSource
from tests.fault.test_kills import CHUNKS, held
from tests.parts import workspace
from tests.parts.faults import Hold
from tests.parts.loopfs import LoopFilesystem
from tests.parts.tree import differences, tree_digest

FICLONE = 0x40049409
FIDEDUPERANGE = 0xC0189436
SHARED_BYTES = 128 * 1024  # one extent
REFERENCES = 1100  # the kernel looks for no clone of an extent with more than 1024. Source: Linux fs/btrfs/send.c


def interrupted(rig: Rig, part: int, *arguments: str) -> Run:
    """Kill the supervisor when the `part`-th part is under way."""
    wait = held(rig, "UploadPart", CHUNKS, nth=part)
    run = rig.start(*arguments)
    wait(run)
    _kill(rig, run)
    return run


def _kill(rig: Rig, run: Run) -> None:
    run.kill()
    rig.proxy.clear(drop=True)
    workspace.poll(lambda: not rig.proxy.in_flight(), seconds=10, what="the proxy is idle")


def test_other_settings_meanwhile(make_rig: MakeRig) -> None:
    """Other sizes, protocol, concurrency and spool: the backup is finished with the sizes it began with."""
    rig = make_rig(data_bytes=32 * MIB)
    interrupted(rig, 5)
    rig.write_config(
        spool={"enabled": False},
        send={"protocol": 2},
        s3={
            "concurrency": 4,
            "segment_size": 6 * MIB,
            "chunk_size": 18 * MIB,
            "storage_class": {"chunks": "STANDARD_IA"},
        },
    )
    again = rig.run_clean()
    assert again.wait_event("backup_resumed")["reused_bytes"] >= 2 * SEGMENT
    (metrics,) = again.named("backup_metrics")
    assert rig.part_bytes() <= metrics["total_bytes"] + 2 * SEGMENT
    (manifest,) = rig.stored.manifests()
    assert (manifest["segment_size_bytes"], manifest["stream"]["protocol"]) == (SEGMENT, 1)
    assert {chunk["bytes"] for chunk in manifest["chunks"][:-1]} == {2 * SEGMENT}
    assert manifest["storage"]["class"] == "STANDARD"
    rig.fill(20 * MIB, seed=2)
    rig.run_clean("--full")
    newest = rig.stored.manifests()[-1]
    assert (newest["segment_size_bytes"], newest["stream"]["protocol"]) == (6 * MIB, 2)
    assert newest["chunks"][0]["bytes"] == 18 * MIB
    rig.check()


def test_fresh_drops_what_was_begun(make_rig: MakeRig) -> None:
    """`--fresh`: the interrupted backup's uploads and snapshot go, another one is made of the source as it is now."""
    rig = make_rig(data_bytes=32 * MIB)
    interrupted(rig, 5)
    (begun,) = rig.own_snapshots()
    assert rig.open_uploads() != []
    rig.fill(MIB, seed=2)
    run = rig.run_clean("--fresh")
    assert not run.named("backup_resumed")
    assert rig.open_uploads() == []
    (made,) = rig.own_snapshots()
    assert made != begun
    rig.check(unreferenced=True)
    assert len(rig.stored.manifests()) == 1


def test_killed_while_it_drops_what_was_begun(make_rig: MakeRig, tmp_path: Path) -> None:
    """`--fresh`, killed when the old snapshot is to be deleted: the next run deletes it."""
    rig = make_rig(data_bytes=32 * MIB)
    interrupted(rig, 5)
    home = fake_btrfs(tmp_path, "kill -KILL $PPID", command="delete")
    run = rig.start("--fresh", environment={"PATH": f"{home}:/usr/bin:/bin"})
    assert run.wait() == -9, run.tail()
    rig.check(unreferenced=True)
    assert len(rig.own_snapshots()) == 1


def test_snapshot_gone_meanwhile(make_rig: MakeRig) -> None:
    """Without its snapshot an interrupted backup cannot go on: its uploads are aborted and a new one is made."""
    rig = make_rig(data_bytes=32 * MIB)
    interrupted(rig, 5)
    (begun,) = rig.own_snapshots()
    subprocess.run(["btrfs", "-q", "subvolume", "delete", rig.snapshots / begun], check=True)
    run = rig.run_clean()
    (decided,) = run.named("plan_decided")
    assert "snapshot is gone" in decided["detail"]
    rig.check(unreferenced=True)


def test_snapshot_renamed_meanwhile(make_rig: MakeRig) -> None:
    """The snapshot is found by its UUID under its new name; only the part that holds the old one is sent again."""
    rig = make_rig(data_bytes=32 * MIB, s3={"chunk_size": 8 * SEGMENT, "concurrency": 1})
    interrupted(rig, 5)
    (begun,) = rig.own_snapshots()
    renamed = f"{begun[:-1]}z"  # as long as before, or else the whole stream would shift
    (rig.snapshots / begun).rename(rig.snapshots / renamed)
    run = rig.run_clean()
    (metrics,) = run.named("backup_metrics")
    assert metrics["reused_bytes"] == 3 * SEGMENT
    (manifest,) = rig.stored.manifests()
    assert manifest["snapshot"]["name"] == renamed
    rig.fill(MIB, seed=2)
    rig.check(once=True)
    assert [manifest["kind"] for manifest in rig.stored.manifests()] == ["full", "incremental"]


def test_several_sources_interrupted_in_a_row(make_rig: MakeRig, loopfs: Callable[..., LoopFilesystem]) -> None:
    """Three sources of one moment, a run killed in each: all come back as they were at that moment, once each."""
    rig = make_rig(data_bytes=12 * MIB)
    names = ["data", "second", "third"]
    places = {"data": rig.source}
    for number, name in enumerate(names[1:], 2):
        places[name] = rig.filesystem.subvolume(name)
        (places[name] / "file").write_bytes(random.Random(number).randbytes(12 * MIB))
    base_dirs = {name: rig.snapshots if name == "data" else rig.filesystem.path / f"snapshots-{name}" for name in names}
    rig.write_config(
        sources=[
            {"name": name, "path": str(places[name]), "snapshots": {"base_dir": str(base_dirs[name])}} for name in names
        ]
    )
    stored = {name: StoredSource(rig.client, rig.bucket, rig.prefix, name) for name in names}
    trees = {name: tree_digest(places[name]) for name in names}
    snapshots: list[str] = []
    for name in names:
        wait = held(rig, "UploadPart", f"/{name}{CHUNKS}", nth=2)
        run = rig.start()
        wait(run)
        _kill(rig, run)
        there = sorted(path.name for directory in base_dirs.values() for path in directory.iterdir())
        snapshots = snapshots or there
        assert there == snapshots, "all were taken by the first run"
        for source, place in places.items():
            (place / "file").write_bytes(f"changed after {name}".encode())
            assert len(stored[source].manifests()) == (names.index(source) < names.index(name))
    rig.note()
    run = rig.run_clean()
    assert [event["source"] for event in run.named("backup_resumed")] == names[2:]
    target = loopfs()
    for name in names:
        (manifest,) = stored[name].manifests()
        assert manifest["snapshot"]["name"] in snapshots
        place = target.path / name
        place.mkdir()
        assert differences(trees[name], stored[name].receive(manifest, place)) == []
        assert stored[name].unreferenced() == []
    rig.check(once=True)


def _sync(path: Path) -> None:
    subprocess.run(["btrfs", "filesystem", "sync", path], check=True)


def _clone(source: Path, target: Path) -> None:
    with source.open("rb") as shared, target.open("wb") as file:
        fcntl.ioctl(file, FICLONE, shared.fileno())


def _reflinks(rig: Rig, snapshot: Path) -> None:
    """Give the shared extent so many references outside of the snapshot that send finds no clone any more."""
    outside = rig.filesystem.subvolume("outside")
    for number in range(REFERENCES):
        _clone(snapshot / "pair/first", outside / f"{number:04}")
    _sync(rig.filesystem.path)


def _deduplicated(snapshot: Path) -> bool:
    """Make two files of the snapshot that are alike share their extents; tell whether the kernel did it."""
    with (snapshot / "twins/first").open("rb") as first, (snapshot / "twins/second").open("rb") as second:
        request = bytearray(struct.pack("=QQHHIqQQiI", 0, SHARED_BYTES, 1, 0, 0, second.fileno(), 0, 0, 0, 0))
        fcntl.ioctl(first, FIDEDUPERANGE, request)
    shared_bytes, status = struct.unpack_from("=Qi", request, 40)
    _sync(snapshot)
    return bool(shared_bytes == SHARED_BYTES and status == 0)


def _dedupe(rig: Rig, snapshot: Path) -> None:
    """Deduplicate inside of the snapshot."""
    assert _deduplicated(snapshot)


def _stream_hash(snapshot: Path) -> str:
    sent = subprocess.run(["btrfs", "send", "-q", snapshot], stdout=subprocess.PIPE, check=True)
    return hashlib.sha256(sent.stdout).hexdigest()


def _pair_and_twins(source: Path) -> None:
    """Write a file with a clone, and two files that are alike."""
    shared = random.Random(8).randbytes(SHARED_BYTES)
    (source / "pair").mkdir()
    (source / "pair/first").write_bytes(shared)
    _sync(source)  # a clone of what is not on disk yet would not share
    _clone(source / "pair/first", source / "pair/second")
    (source / "twins").mkdir()
    for name in ("first", "second"):
        (source / "twins" / name).write_bytes(shared[::-1])
    _sync(source)


@pytest.mark.parametrize(
    ("change", "early"),
    [(_reflinks, True), (_reflinks, False), (_dedupe, True)],
    ids=["reflinks in a stored chunk", "reflinks after it", "dedupe"],
)
def test_other_stream_on_resume(make_rig: MakeRig, change: Callable[[Rig, Path], None], early: bool) -> None:
    """B08: the snapshot's content is the same, its stream is not: noticed by hash, never mixed into one object.

    Deduplication always changes the beginning: the first command of a stream names the snapshot's ctransid.
    """
    rig = make_rig(data_bytes=0)
    if early:
        _pair_and_twins(rig.source)
    rig.fill(32 * MIB)
    if not early:
        _pair_and_twins(rig.source)
    rig.note()
    rig.write_config(s3={"concurrency": 1})
    wait = held(rig, "CompleteMultipartUpload", CHUNKS, nth=2)
    first = rig.start()
    wait(first)
    first.wait_event("chunk_completed", chunk_index=0)
    _kill(rig, first)
    (name,) = rig.own_snapshots()
    snapshot = rig.snapshots / name
    before = _stream_hash(snapshot)
    change(rig, snapshot)
    assert _stream_hash(snapshot) != before, "the stream is the same: this proves nothing"
    sent = rig.part_bytes()
    run = rig.run_clean()
    (manifest,) = rig.stored.manifests()
    assert hashlib.sha256(rig.stored.stream(manifest)).hexdigest() == _stream_hash(
        rig.snapshots / manifest["snapshot"]["name"]
    )
    if early:
        assert "differs" in run.named("send_failed")[0]["error"]
        assert manifest["snapshot"]["name"] != name, "a new backup was made"
        assert rig.stored.unreferenced() != []
    else:
        assert manifest["snapshot"]["name"] == name
        assert run.wait_event("backup_resumed")["reused_bytes"] >= 2 * SEGMENT
        assert rig.part_bytes() - sent <= manifest["stream"]["bytes"] - 2 * SEGMENT, "what is the same was sent again"
    rig.check(unreferenced=early)


def test_part_under_way_that_differs_is_sent_again(make_rig: MakeRig) -> None:
    """B08: in a chunk that is not completed only the parts that differ are sent again."""
    rig = make_rig(data_bytes=0, s3={"chunk_size": 8 * SEGMENT, "concurrency": 1})
    rig.fill(12 * MIB)
    _pair_and_twins(rig.source)
    rig.fill(12 * MIB, seed=2)
    interrupted(rig, 5)
    (name,) = rig.own_snapshots()
    before = _stream_hash(rig.snapshots / name)
    _dedupe(rig, rig.snapshots / name)
    assert _stream_hash(rig.snapshots / name) != before
    run = rig.run_clean()
    (metrics,) = run.named("backup_metrics")
    assert metrics["reused_bytes"] == SEGMENT, "the one part between the stream's first command and the twins"
    (manifest,) = rig.stored.manifests()
    assert manifest["snapshot"]["name"] == name
    rig.check()


def test_shorter_stream_leaves_no_upload(make_rig: MakeRig) -> None:
    """B08: a chunk that was begun and that the stream does not reach any more is not left open for ever."""
    rig = make_rig(data_bytes=12 * MIB, s3={"chunk_size": SEGMENT})
    (rig.source / "pair").mkdir()
    (rig.source / "pair/first").write_bytes(random.Random(9).randbytes(6 * MIB))
    _sync(rig.source)
    _clone(rig.source / "pair/first", rig.source / "pair/second")
    _reflinks(rig, rig.source)  # so many that the clone is sent as data
    rig.note()
    for chunk in ("/000003", "/000004"):
        rig.proxy.rule("UploadPart", Hold(), times=None, key=chunk)
    run = rig.start()
    workspace.poll(lambda: len(rig.proxy.in_flight("UploadPart")) == 2, seconds=30, what="the last two chunks are open")
    _kill(rig, run)
    (name,) = rig.own_snapshots()
    outside = rig.filesystem.path / "outside"
    subprocess.run(["btrfs", "-q", "subvolume", "delete", "--commit-after", outside], check=True)
    before = _stream_hash(rig.snapshots / name)
    subprocess.run(["btrfs", "subvolume", "sync", rig.filesystem.path], stdout=subprocess.DEVNULL, check=True)
    _sync(rig.filesystem.path)
    assert _stream_hash(rig.snapshots / name) != before, "the stream is the same: this proves nothing"
    rig.run_clean()
    (manifest,) = rig.stored.manifests()
    assert (manifest["snapshot"]["name"], len(manifest["chunks"])) == (name, 4)
    assert rig.open_uploads() == []
    rig.check()


def test_balance_and_dedupe_during_send(make_rig: MakeRig) -> None:
    """B09: the filesystem is balanced and deduplicated all the time: what is committed is right, or nothing is."""
    rig = make_rig(data_bytes=24 * MIB, s3={"max_bandwidth": 6 * MIB})
    _pair_and_twins(rig.source)
    rig.note()
    run = rig.start()
    run.wait_event("send_started")
    (name,) = rig.own_snapshots()
    balanced = 0
    while run.process.poll() is None:
        assert time.monotonic() < run.started + 60, run.tail()
        done = subprocess.run(
            ["btrfs", "balance", "start", "--full-balance", rig.filesystem.path], capture_output=True, check=False
        )
        balanced += done.returncode == 0
        if (rig.snapshots / name).exists():
            _deduplicated(rig.snapshots / name)  # refused while a send reads it
    assert balanced, done.stderr
    if run.process.returncode != 0:
        rig.assert_failed(run)
    rig.write_config(s3={"max_bandwidth": None})
    rig.check(unreferenced=run.process.returncode != 0)


def _second_source(rig: Rig) -> Path:
    """Add a source that is sent after the first one."""
    second = rig.filesystem.subvolume("second")
    _pair_and_twins(second)
    rig.write_config(sources=[{"name": name, "path": str(rig.filesystem.path / name)} for name in ("data", "second")])
    return second


def _restored(rig: Rig, source: str) -> Path:
    """Restore the newest backup with `b2s restore`, which trusts the stream no further than its manifest."""
    target = rig.filesystem.path / "restored"
    run = rig.start("--source", source, "--target", str(target), command="restore")
    assert run.wait() == 0, run.tail()
    return target


def _while_the_first_is_sent(rig: Rig, *arguments: str, change: Callable[[Path], object]) -> Run:
    """Back both sources up; change a snapshot of the second one before it is sent."""
    before = {path.name for path in rig.snapshots.iterdir()} if rig.snapshots.exists() else set()
    wait = held(rig, "UploadPart", f"/data{CHUNKS}")
    run = rig.start(*arguments)
    wait(run)
    (snapshot,) = (path for path in rig.snapshots.glob("second.*") if path.name not in before)
    change(snapshot)
    rig.proxy.clear()
    assert run.wait() == 0, run.tail()
    return run


def test_deduplicated_before_it_is_sent(make_rig: MakeRig) -> None:
    """B09: days may pass between snapshot and send, while others are sent; manifest and stream agree all the same."""
    rig = make_rig(data_bytes=6 * MIB)
    second = _second_source(rig)
    _while_the_first_is_sent(rig, change=lambda snapshot: _dedupe(rig, snapshot))
    assert differences(tree_digest(second), tree_digest(_restored(rig, "second"))) == []


def test_send_parent_changed_before_it_is_used(make_rig: MakeRig) -> None:
    """B03: what the send parent lost after it was chosen would not be in the incremental; so a full is made."""
    rig = make_rig(data_bytes=6 * MIB)
    second = _second_source(rig)
    rig.run_clean()
    (parent,) = rig.snapshots.glob("second.*")
    rig.fill(6 * MIB, seed=2)
    (second / "pair/first").unlink()

    def edit(_snapshot: Path) -> None:
        subprocess.run(["btrfs", "property", "set", parent, "ro", "false"], check=True)
        (parent / "pair/first").unlink()
        subprocess.run(["btrfs", "property", "set", parent, "ro", "true"], check=True)

    run = _while_the_first_is_sent(rig, "--once", change=edit)
    assert run.named("plan_decided", source="second", reason="send_parent_changed")
    assert differences(tree_digest(second), tree_digest(_restored(rig, "second"))) == []


def test_everything_else_during_a_backup(make_rig: MakeRig) -> None:
    """C04: restore, verify, list, status, plan and doctor beside a backup under way see whole backups or nothing."""
    rig = make_rig(data_bytes=12 * MIB)
    rig.run_clean()
    before = rig.states[-1]
    rig.fill(22 * MIB, seed=2)
    wait = held(rig, "UploadPart", CHUNKS, nth=3)
    run = rig.start("--once")
    wait(run)
    target = rig.filesystem.path / "restored"
    for command, *arguments in (
        ("restore", "--source", "data", "--target", str(target)),
        ("verify",),
        ("verify", "--data"),
        ("list",),
        ("status",),
        ("plan",),
        ("doctor",),
    ):
        beside = rig.run(*arguments, command=command)
        assert beside.process.returncode == 0, (command, beside.tail(), beside.output.read_text())
    assert differences(before, tree_digest(target)) == []
    assert run.process.poll() is None, run.tail()
    rig.proxy.clear()
    assert run.wait() == 0, run.tail()
    rig.check()
