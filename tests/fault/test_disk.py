"""Full, torn, strange and cut-off disks (rows D)."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.fault.conftest import MakeRig
from tests.fault.harness import MIB, SEGMENT, Rig
from tests.fault.runs import Run, b2s_command
from tests.fault.test_kills import CHUNKS, held
from tests.parts.loopfs import LoopFilesystem
from tests.parts.proxy import Exchange


@contextmanager
def tmpfs(path: Path, size_bytes: int) -> Iterator[None]:
    """Mount a tmpfs of this size."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_small_spool_disk_is_enough(make_rig: MakeRig) -> None:
    """D01: a disk that holds fewer segments than configured slows the run down, no more."""
    rig = make_rig(data_bytes=32 * MIB, spool={"size": 8 * SEGMENT})
    with tmpfs(rig.spool_directory, 2 * SEGMENT + MIB):
        run = rig.run_clean()
        (metrics,) = run.named("backup_metrics")
        assert metrics["peak_spool_bytes"] <= 2 * SEGMENT
    rig.check()


def _no_room(run_environment: Rig) -> None:
    last = run_environment.assert_failed(run_environment.runs[-1])
    assert "spool" in f"{last['error']} {last['hint']}", last
    assert last["hint"]
    assert run_environment.stored.manifests() == []


def test_spool_disk_that_holds_nothing(make_rig: MakeRig) -> None:
    """D01: not one segment fits: a clear failure, soon, and nothing is left."""
    rig = make_rig(data_bytes=6 * MIB)
    with tmpfs(rig.spool_directory, 3 * MIB):
        rig.run(seconds=30)
        _no_room(rig)
        assert list(rig.spool_directory.iterdir()) == []
    rig.check()


def test_spool_file_size_limit(make_rig: MakeRig) -> None:
    """D01: RLIMIT_FSIZE below one segment: the same clear failure."""
    rig = make_rig(data_bytes=6 * MIB)
    rig.run(before=("prlimit", f"--fsize={3 * MIB}", "--"), seconds=30)
    _no_room(rig)
    rig.check()


def test_full_disk_frees_up(make_rig: MakeRig) -> None:
    """D01: a spool that has room for one segment of a backup interrupted with many goes on with one."""
    rig = make_rig(data_bytes=32 * MIB)
    wait = held(rig, "UploadPart", CHUNKS, nth=3)
    run = rig.start()
    wait(run)
    run.kill()
    rig.proxy.clear()
    shutil.rmtree(rig.spool_directory)
    with tmpfs(rig.spool_directory, SEGMENT + MIB):
        rig.run_clean()
    rig.check()


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 - 100)


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as state:
        state.execute("PRAGMA user_version = 99")


def _other_host(path: Path) -> None:
    with closing(sqlite3.connect(path)) as state:
        state.execute("UPDATE host SET id = ?", ("0" * 64,))
        state.commit()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": _truncate,
    "garbage": lambda path: path.write_bytes(random.Random(3).randbytes(40_000)),
    "newer": _newer,
    "other host": _other_host,
}


def test_damaged_state_is_rebuilt(make_rig: MakeRig) -> None:
    """D03: whatever happened to the state, the next backup is incremental, and it is said that it was rebuilt."""
    rig = make_rig(data_bytes=6 * MIB)
    rig.run_clean()
    for number, (name, damage) in enumerate(DAMAGE.items(), 2):
        damage(rig.state_path)
        rig.fill(MIB, seed=number)
        run = rig.run_clean("--once")
        assert len(run.named("state_rebuilt")) == 1, name
        newest = rig.stored.manifests()[-1]
        assert (newest["sequence"], newest["kind"]) == (number, "incremental"), name
    for moved in rig.state_path.parent.glob("state.db.damaged*"):
        moved.unlink()
    rig.check()


@pytest.mark.parametrize("damage", ["deleted", "garbage"])
def test_state_lost_in_mid_backup(make_rig: MakeRig, damage: str) -> None:
    """D03: an interrupted backup that nobody remembers leaves no upload behind, and no more snapshots than usual."""
    rig = make_rig(data_bytes=22 * MIB)
    wait = held(rig, "UploadPart", CHUNKS, nth=4)
    run = rig.start()
    wait(run)
    run.kill()
    for side in ("-wal", "-shm"):
        Path(f"{rig.state_path}{side}").unlink(missing_ok=True)
    DAMAGE[damage](rig.state_path)
    rig.check(unreferenced=True, forgotten=True)


def test_segment_damaged_in_the_spool(make_rig: MakeRig) -> None:
    """D04: a bit that flips in the spool after the segment was hashed is never stored under that hash."""
    rig = make_rig(data_bytes=22 * MIB, s3={"retry_for": "5s"})
    wait = held(rig, "UploadPart", CHUNKS, nth=2)
    run = rig.start()
    wait(run)
    (spool,) = rig.spool_directory.glob("b2s-*")
    for call in rig.proxy.in_flight("UploadPart"):
        assert call.part_number is not None
        segment = int(call.key[-6:]) * 2 + call.part_number - 1
        assert segment < 4, "the first four segments lie in the slots of their numbers"
        with (spool / f"slot-{segment:06}").open("r+b") as file:
            file.seek(SEGMENT - 2)  # its last bytes have not left the uploader: sockets hold less than a segment
            byte = file.read(1)
            file.seek(SEGMENT - 2)
            file.write(bytes([byte[0] ^ 1]))
    rig.proxy.clear()
    if run.wait() != 0:
        rig.assert_failed(run)

    def rejected(call: Exchange) -> bool:
        return call.upstream_status is not None and call.upstream_status >= 400

    assert any(rejected(call) for call in rig.proxy.history("UploadPart", key=CHUNKS)), "the flip had no effect"
    rig.check()


def test_leftovers_in_the_spool_directory(make_rig: MakeRig, tmp_path: Path) -> None:
    """D05: spools of dead runs go; foreign files, links and directories that are not ours stay."""
    rig = make_rig(data_bytes=MIB)
    spool = rig.spool_directory
    spool.mkdir(mode=0o700)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    dead = spool / "b2s-20200101T000000Z-00000000"
    dead.mkdir(mode=0o700)
    (dead / "slot-000000").write_bytes(b"left")
    (dead / "link").symlink_to(outside)
    (dead / "owner.json").write_text('{"pid": 4194301, "create_time": 1.0, "run_id": "x"}')
    (spool / "b2s-notes.txt").write_text("mine")
    (spool / "b2s-link").symlink_to(outside)
    (spool / "other").mkdir()
    open_to_all = spool / "b2s-open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    run = rig.run_clean()
    assert run.named("orphan_removed", what="spool", path=str(dead))
    assert sorted(path.name for path in spool.iterdir()) == ["b2s-link", "b2s-notes.txt", "b2s-open", "other"]
    assert (outside / "precious").read_text() == "precious"
    for path in (spool / "b2s-link", spool / "b2s-notes.txt"):
        path.unlink()
    open_to_all.rmdir()
    (spool / "other").rmdir()
    rig.check()


def test_what_only_looks_like_a_spool_is_not_touched(make_rig: MakeRig, tmp_path: Path) -> None:
    """D05: `spool.dir` may be any directory; private directories of others in it, and behind a link, stay whole."""
    rig = make_rig(data_bytes=MIB)
    spool = rig.spool_directory
    spool.mkdir(mode=0o700)
    named_like_a_run = "b2s-20200101T000000Z-00000000"
    kept = [spool / "b2s-restored", spool / "b2s-test-1", spool / named_like_a_run, tmp_path / "other" / "b2s-data"]
    for directory in kept:
        (directory / "below").mkdir(parents=True)
        directory.chmod(0o700)
        (directory / "below" / "precious").write_text("precious")
    mounted = spool / "b2s-20200102T000000Z-00000000"
    mounted.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", mounted], check=True)
    try:
        (mounted / "precious").write_text("precious")
        run = rig.run_clean()
        assert run.named("orphan_removed", what="spool") == []
        rig.write_config(spool={"dir": str(tmp_path / "link")})
        (tmp_path / "link").symlink_to(tmp_path / "other")
        rig.assert_failed(rig.run("--full"))
        assert (mounted / "precious").read_text() == "precious"
    finally:
        subprocess.run(["umount", mounted], check=True)
    for directory in kept:
        assert (directory / "below" / "precious").read_text() == "precious"


def test_spool_removed_under_a_run(make_rig: MakeRig) -> None:
    """D05: somebody empties the spool directory in mid-run: the run fails soon, by a sentence, and can go on."""
    rig = make_rig(data_bytes=32 * MIB)
    wait = held(rig, "UploadPart", CHUNKS, nth=2)
    run = rig.start()
    wait(run)
    shutil.rmtree(rig.spool_directory)
    rig.proxy.clear()
    run.wait(30)
    last = rig.assert_failed(run)
    assert "spool" in last["error"], last
    assert not run.named("child_failed"), "told as a bug"
    rig.assert_nothing_runs()
    rig.check()


def test_spool_of_a_living_run_is_known_whatever_the_clock_says(make_rig: MakeRig, tmp_path: Path) -> None:
    """C05: set back or forward, the clock makes a living run's start time look like another's; its spool stays."""
    rig = make_rig(data_bytes=32 * MIB, spool={"enabled": False})
    wait = held(rig, "UploadPart", CHUNKS, nth=3)
    run = rig.start()
    wait(run)
    (run_id,) = {event["run_id"] for event in run.events()}
    spool = Path(f"/dev/shm/b2s-{run_id}")
    slots = sorted(spool.glob("slot-*"))
    assert slots
    stat = tmp_path / "stat"  # what the kernel shows once the clock was set forward by a day
    lines = Path("/proc/stat").read_text().splitlines(keepends=True)
    stat.write_text(
        "".join(f"btime {int(line.split()[1]) + 86400}\n" if line[:5] == "btime" else line for line in lines)
    )
    other = tmp_path / "other.yaml"
    settings = {
        **rig.settings,
        "state_path": str(tmp_path / "state/other.db"),
        "lock_path": str(tmp_path / "other.lock"),
        "spool": {"enabled": True, "dir": str(tmp_path / "other-spool"), "size": 4 * SEGMENT},
    }
    other.write_text(json.dumps({**settings, "s3": {**rig.settings["s3"], "prefix": f"{rig.prefix}-other"}}))
    beside = ("unshare", "--mount", "sh", "-c", f'mount --bind {stat} /proc/stat && exec "$@"', "sh")
    words = [*beside, *b2s_command("backup", "--no-s3", "--config", str(other))]
    second = Run(words, rig.environment, tmp_path / "second.log")
    assert second.wait() == 0, second.tail()
    contended = Run(
        [*beside, *b2s_command("backup", "--config", str(rig.config))], rig.environment, tmp_path / "third.log"
    )
    assert contended.wait() == 3, contended.tail()
    assert str(run.process.pid) in contended.last["error"]
    assert sorted(spool.glob("slot-*")) == slots
    rig.proxy.clear()
    assert run.wait() == 0, run.tail()
    rig.check()


def test_spool_directory_with_a_hundred_thousand_entries(make_rig: MakeRig) -> None:
    """D05: what others left there costs a run next to nothing, and stays."""
    rig = make_rig(data_bytes=MIB)
    spool = rig.spool_directory
    spool.mkdir(mode=0o700)
    for number in range(100_000):
        os.close(os.open(spool / f"b2s-{number}", os.O_CREAT | os.O_WRONLY, 0o600))
    run = rig.run_clean()
    assert run.last["elapsed_seconds"] < 15
    assert len(os.listdir(spool)) == 100_000
    shutil.rmtree(spool)
    rig.check()


def test_unsafe_spool_directory_is_refused(make_rig: MakeRig, tmp_path: Path) -> None:
    """D05: a symlink or a directory that others may write is no place for a spool."""
    rig = make_rig(data_bytes=MIB)
    rig.spool_directory.symlink_to(tmp_path)
    assert "spool" in rig.assert_failed(rig.run())["error"]
    rig.spool_directory.unlink()
    rig.spool_directory.mkdir()
    rig.spool_directory.chmod(0o777)
    assert "spool" in rig.assert_failed(rig.run())["error"]
    rig.spool_directory.chmod(0o700)
    rig.check()


def power_cuts(rig: Rig, disk: LoopFilesystem, cuts: int, seed: int) -> None:
    """Cut the power of state and spool at random moments of one backup after the other.

    The image of the mounted filesystem is what the disk would have at that moment: what was not flushed is not there.
    """
    rng = random.Random(seed)
    for number in range(cuts):
        rig.fill(6 * MIB, seed=seed + number)
        run = rig.start("--once")
        time.sleep(rng.uniform(0.3, 3.5))  # the fault's random moment, not a wait for anything
        copy = disk.image.with_suffix(".copy")
        subprocess.run(["cp", "--sparse=always", disk.image, copy], check=True)
        if run.process.poll() is None:
            run.kill()
        disk.unmount()
        copy.rename(disk.image)
        disk.mount()
        rig.run_clean()
        rig.assert_nothing_runs()


def _on_ext4(make_rig: MakeRig, loopfs: Callable[..., LoopFilesystem]) -> tuple[Rig, LoopFilesystem]:
    disk = loopfs(kind="ext4", size_bytes=64 * MIB)
    rig = make_rig(
        data_bytes=6 * MIB,
        state_path=str(disk.path / "state/state.db"),
        lock_path=str(disk.path / "run/b2s.lock"),
        spool={"dir": str(disk.path / "spool"), "size": 4 * SEGMENT},
        s3={"max_bandwidth": 8 * MIB},
    )
    return rig, disk


def test_power_cuts(make_rig: MakeRig, loopfs: Callable[..., LoopFilesystem]) -> None:
    """D06: a sample of the twenty below."""
    rig, disk = _on_ext4(make_rig, loopfs)
    power_cuts(rig, disk, 3, seed=6)
    rig.check(once=True, unreferenced=True)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_twenty_power_cuts(make_rig: MakeRig, loopfs: Callable[..., LoopFilesystem]) -> None:
    """D06: state and spool as a power cut leaves them, at twenty random moments: the next run exits 0."""
    rig, disk = _on_ext4(make_rig, loopfs)
    power_cuts(rig, disk, 20, seed=60)
    rig.check(once=True, unreferenced=True)
