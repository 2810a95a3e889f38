"""`btrfs send` that fails, lies or reads a damaged disk, and snapshots that cannot be made (B01, B02, B05, K10)."""

from __future__ import annotations

import mmap
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.fault.conftest import MakeRig
from tests.fault.fake_btrfs import fake_btrfs
from tests.fault.harness import MIB, Rig
from tests.fault.runs import Run
from tests.parts import workspace
from tests.parts.loopfs import LoopFilesystem


def _flip_in_image(rig: Rig, content: bytes) -> int:
    """Flip a bit of every copy of `content` on the disk; return how many there were."""
    rig.filesystem.unmount()
    found = 0
    with rig.filesystem.image.open("r+b") as image, mmap.mmap(image.fileno(), 0) as disk:
        position = disk.find(content)
        while position >= 0:
            disk[position + 17] ^= 4
            found += 1
            position = disk.find(content, position + 1)
        disk.flush()
    rig.filesystem.mount()
    return found


def test_checksum_error_in_the_source(make_rig: MakeRig) -> None:
    """B01: data that rotted on the disk is never backed up as if it was good."""
    rig = make_rig(data_bytes=22 * MIB)
    victim = random.Random(1)
    content = [victim.randbytes(MIB) for _ in range(20)][16]
    assert (rig.source / "files-0/0016").read_bytes() == content
    assert _flip_in_image(rig, content[8192:12288]) >= 1
    run = rig.run()
    last = rig.assert_failed(run)
    assert "btrfs send" in last["error"]
    (failed,) = run.named("backup_failed")
    assert "Input/output error" in failed["send_stderr"], failed
    assert rig.stored.manifests() == []
    rig.assert_nothing_runs()
    assert _flip_in_image(rig, _flipped(content[8192:12288])) >= 1  # the disk is good again
    rig.check(unreferenced=True)


def _flipped(content: bytes) -> bytes:
    return content[:17] + bytes([content[17] ^ 4]) + content[18:]


LIES = {
    "no output, exit 0": "exit 0",
    "no END, exit 0": "real | head -c -10; exit 0",
    "cut in mid-command, exit 0": "real | head -c 7000001; exit 0",
    "exit 1 after END": 'real; echo "ERROR: the disk is on fire" >&2; exit 1',
    "killed after END": "real; kill -9 $$",
    "exit 1 in mid-stream": 'real | head -c 7000001; echo "ERROR: the disk is on fire" >&2; exit 1',
    "2 MiB on stderr": (
        "head -c 2097152 /dev/zero | tr '\\0' x >&2; real; echo; echo \"ERROR: the disk is on fire\" >&2; exit 1"
    ),
    "wrong magic": "printf 'not-a-stream\\0\\1\\0\\0\\0'; real",
    "text": "echo usage: btrfs; exit 0",
    "bytes after END": "real; printf x",
    "second stream after END": "real; real",
}


def test_lying_send(make_rig: MakeRig, tmp_path: Path) -> None:
    """B02: whatever it does, no manifest, exit 1, its stderr shown, within bounds; then the real one goes on."""
    rig = make_rig(data_bytes=11 * MIB)
    for number, (name, send) in enumerate(LIES.items()):
        home = fake_btrfs(tmp_path, send, name=f"fake-{number}")
        run = rig.run(environment={"PATH": f"{home}:/usr/bin:/bin"}, seconds=30)
        assert run.process.returncode == 1, f"{name}: {run.tail()}"
        last = rig.assert_failed(run)
        assert "btrfs send" in last["error"], (name, last)
        (failed,) = run.named("backup_failed")
        assert ("on fire" in failed["send_stderr"]) == ("on fire" in send), (name, failed)
        assert len(failed["send_stderr"]) <= 5000, name
        assert rig.stored.manifests() == [], name
        rig.assert_nothing_runs()
    rig.check(unreferenced=True)


def test_send_that_never_exits_can_be_stopped(make_rig: MakeRig, tmp_path: Path) -> None:
    """B02: while the run waits for its end, a signal is obeyed at once."""
    rig = make_rig(data_bytes=6 * MIB)
    home = fake_btrfs(tmp_path, 'real; touch "$OVER"; exec >&-; exec sleep 600')
    over = tmp_path / "over"
    run = rig.start(environment={"PATH": f"{home}:/usr/bin:/bin", "OVER": str(over)})
    workspace.poll(over.exists, seconds=30, what="the stream is over")
    workspace.poll(lambda: not run.children("chunker"), seconds=10, what="the chunker is done")
    run.send_signal(signal.SIGTERM)
    assert run.wait(10) == 143, run.tail()
    rig.assert_nothing_runs()
    rig.check()


@pytest.mark.long
def test_send_that_never_exits(make_rig: MakeRig, tmp_path: Path) -> None:
    """B02: the stream is whole, the process stays: the run ends within its bound and names the pid."""
    rig = make_rig(data_bytes=6 * MIB)
    home = fake_btrfs(tmp_path, "real; exec >&-; exec sleep 600")
    run: Run = rig.run(environment={"PATH": f"{home}:/usr/bin:/bin"}, seconds=60)
    last = rig.assert_failed(run)
    assert str(run.all_children("btrfs")[0].pid) in last["error"]
    assert rig.stored.manifests() == []
    rig.assert_nothing_runs()
    rig.check()


@contextmanager
def frozen(filesystem: LoopFilesystem) -> Iterator[Path]:
    """Freeze a filesystem: whoever writes to it waits in the kernel, where SIGKILL does not reach it."""
    subprocess.run(["fsfreeze", "--freeze", filesystem.path], check=True)
    try:
        yield filesystem.path
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", filesystem.path], check=True)


def test_send_that_nothing_ends(make_rig: MakeRig, loopfs: Callable[..., LoopFilesystem], tmp_path: Path) -> None:
    """K10: a send that waits in the kernel: asked to stop, the run ends in time and names it; the next one knows."""
    rig = make_rig(data_bytes=22 * MIB)
    disk = loopfs(kind="ext4", size_bytes=16 * MIB)
    with frozen(disk) as directory:
        home = fake_btrfs(tmp_path, f"real | head -c 7000001; : > {directory}/file")
        run = rig.start(environment={"PATH": f"{home}:/usr/bin:/bin"})
        send = psutil.Process(run.child("btrfs").pid)
        workspace.poll(lambda: send.status() == psutil.STATUS_DISK_SLEEP, seconds=30, what="send is stuck")
        run.send_signal(signal.SIGTERM)
        assert run.wait(10) == 143, run.tail()
        last = run.last
        assert (last["event"], last["exit_code"]) == ("run_finished", 143)
        assert "SIGTERM" in last["error"]
        assert str(send.pid) in last["hint"], last
        left = [process.pid for process in workspace.own_processes() if process.ppid() == run.process.pid]
        assert left == []
        meanwhile = rig.run()
        assert meanwhile.process.returncode == 0, meanwhile.tail()
        assert str(send.pid) in str(meanwhile.named("orphan_removed", what="nothing"))
    rig.check()


def test_send_that_writes_nothing_more(make_rig: MakeRig, tmp_path: Path) -> None:
    """B02: a send that hangs in mid-stream can be stopped by a signal like any other."""
    rig = make_rig(data_bytes=11 * MIB)
    home = fake_btrfs(tmp_path, "trap '' TERM; real | head -c 7000001; while :; do sleep 1; done")
    run = rig.start(environment={"PATH": f"{home}:/usr/bin:/bin"})
    run.wait_event("send_started")
    run.child("btrfs")
    run.send_signal(15)
    assert run.wait(10) == 143, run.tail()
    rig.assert_nothing_runs()
    rig.check()


def _snapshot_fails(rig: Rig, *words: str) -> None:
    """Run once; the snapshot cannot be made, which is one line with a hint, and nothing is left of it."""
    run = rig.run(seconds=60)
    last = rig.assert_failed(run)
    assert "\n" not in last["error"]
    assert "trace" not in last
    assert last["hint"], last
    assert any(word in f"{last['error']} {last['hint']}".lower() for word in words), last
    rig.assert_nothing_runs()
    assert rig.stored.manifests() == []
    assert rig.open_uploads() == []


def test_snapshot_directory_elsewhere(make_rig: MakeRig, loopfs: Callable[..., LoopFilesystem]) -> None:
    """B05: a snapshot directory on another filesystem is one clear line."""
    rig = make_rig(data_bytes=MIB)
    other = loopfs()
    rig.write_config(snapshots={"base_dir": str(other.path / "snapshots")})
    _snapshot_fails(rig, "filesystem")
    rig.write_config(snapshots={"base_dir": str(rig.snapshots)})
    rig.check()


def test_filesystem_read_only(make_rig: MakeRig) -> None:
    """B05: the filesystem went read-only: one clear line; once it is writable the backup is made."""
    rig = make_rig(data_bytes=MIB)
    rig.snapshots.mkdir(mode=0o700)
    rig.filesystem.remount("ro")
    _snapshot_fails(rig, "read-only")
    rig.filesystem.remount("rw")
    rig.check()


def _fill_up(directory: Path, size: int) -> None:
    for number in range(1_000_000):
        (directory / f"{size}-{number}").write_bytes(b"x" * size)


def test_filesystem_full(make_rig: MakeRig) -> None:
    """B05: not a block of room: the backup is made or fails clearly, and is made once there is."""
    rig = make_rig(data_bytes=MIB)
    hog = rig.filesystem.path / "hog"
    hog.mkdir()
    for size in (MIB, 4096):
        with pytest.raises(OSError, match="No space"):
            _fill_up(hog, size)
    subprocess.run(["btrfs", "filesystem", "sync", rig.filesystem.path], check=False)
    run = rig.run(seconds=60)
    if run.process.returncode != 0:
        assert rig.assert_failed(run)["hint"]
        assert rig.stored.manifests() == []
    rig.assert_nothing_runs()
    shutil.rmtree(hog)
    rig.check()


def test_stop_while_the_filesystem_is_frozen(make_rig: MakeRig) -> None:
    """B05, K08: a snapshot that waits in the kernel does not keep the run from stopping in time."""
    rig = make_rig(data_bytes=MIB)
    rig.run_clean()
    rig.fill(MIB, seed=2)
    with frozen(rig.filesystem):
        run = rig.start("--once")
        workspace.poll(lambda: _takes_a_snapshot(run), seconds=30, what="the snapshot waits")
        run.send_signal(signal.SIGTERM)
        assert run.wait(10) == 143, run.tail()
        assert run.last["event"] == "run_finished"
    rig.check(once=True)


def _takes_a_snapshot(run: Run) -> bool:
    run.descendants()
    return any("subvolume snapshot" in words for words in run.command_lines)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_filesystem_frozen(make_rig: MakeRig) -> None:
    """B05: the filesystem stays frozen: the run gives up within its bound and names what hangs."""
    rig = make_rig(data_bytes=MIB)
    rig.run_clean()
    rig.fill(MIB, seed=2)
    with frozen(rig.filesystem):
        run = rig.run("--once", seconds=140)
        last = rig.assert_failed(run)
        assert "frozen" in f"{last['error']} {last['hint']}", last
    assert len(rig.stored.manifests()) == 1
    rig.check(once=True)
