"""Runs at once and strange lock files (C01, C02)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.fault.conftest import MakeRig
from tests.fault.harness import MIB, Rig
from tests.fault.runs import Run
from tests.fault.test_kills import CHUNKS, held
from tests.parts import workspace

CONTENDED_SECONDS_MAX = 2.0
CORES = os.cpu_count() or 1


def test_ten_runs_at_once(make_rig: MakeRig) -> None:
    """C01: one works, nine exit 3 soon and name it."""
    rig = make_rig(data_bytes=11 * MIB)
    wait = held(rig, "UploadPart", CHUNKS)
    runs = [rig.start() for _ in range(10)]
    workspace.poll(lambda: sum(run.process.poll() is None for run in runs) == 1, seconds=40, what="nine gave up")
    (winner,) = [run for run in runs if run.process.poll() is None]
    wait(winner)
    for run in runs:
        if run is winner:
            continue
        last = rig.assert_failed(run, 3)
        assert last["elapsed_seconds"] <= CONTENDED_SECONDS_MAX * max(1, len(runs) / CORES)
        (contended,) = run.named("lock_contended")
        assert contended["holder_pid"] == winner.process.pid
        assert str(winner.process.pid) in last["error"]
        assert last["hint"]
    rig.proxy.clear()
    assert winner.wait() == 0, winner.tail()
    rig.check()
    assert len(rig.stored.manifests()) == 1


def test_one_more_run(make_rig: MakeRig) -> None:
    """C01: the usual overlap of two cron jobs: the second ends within two seconds."""
    rig = make_rig(data_bytes=11 * MIB)
    wait = held(rig, "UploadPart", CHUNKS)
    first = rig.start()
    wait(first)
    last = rig.assert_failed(rig.run(), 3)
    assert last["elapsed_seconds"] <= CONTENDED_SECONDS_MAX
    rig.proxy.clear()
    assert first.wait() == 0, first.tail()
    rig.check()


def test_ten_runs_take_over_a_dead_lock(make_rig: MakeRig) -> None:
    """C02: with the lock of a killed run lying there, still exactly one of ten works."""
    rig = make_rig(data_bytes=11 * MIB)
    wait = held(rig, "UploadPart", CHUNKS)
    dead = rig.start()
    wait(dead)
    dead.kill()
    runs = [rig.start() for _ in range(10)]
    workspace.poll(lambda: sum(run.process.poll() is None for run in runs) == 1, seconds=40, what="nine gave up")
    (winner,) = [run for run in runs if run.process.poll() is None]
    assert [run.process.returncode for run in runs if run is not winner] == [3] * 9
    rig.proxy.clear()
    assert winner.wait() == 0, winner.tail()
    assert winner.named("lock_stale_removed", holder_pid=dead.process.pid)
    rig.check()


def _content(**changes: object) -> bytes:
    me = psutil.Process()
    content = {
        "pid": me.pid,
        "create_time": me.create_time(),
        "host": os.uname().nodename,
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "run_id": "20200101T000000Z-00000000",
    }
    return json.dumps(content | changes).encode()


STALE: dict[str, Callable[[], bytes]] = {
    "dead pid": lambda: _content(pid=2**22 - 3),
    "reused pid": lambda: _content(create_time=1.0e9),
    "other boot": lambda: _content(boot_id="00000000-0000-0000-0000-000000000000"),
    "empty": lambda: b"",
    "garbage": lambda: b"\x00\xff{not json",
    "wrong types": lambda: b'{"pid": "1", "create_time": null}',
    "list": lambda: b"[1, 2]",
}


def test_stale_locks_are_taken_over(make_rig: MakeRig) -> None:
    """C02: whatever a lock file without a living holder says, the run takes it over and says so."""
    rig = make_rig(data_bytes=MIB)
    for name, content in STALE.items():
        rig.lock_path.parent.mkdir(mode=0o700, exist_ok=True)
        rig.lock_path.write_bytes(content())
        run = rig.run_clean()
        assert len(run.named("lock_stale_removed")) == (name != "empty"), name
        assert not rig.lock_path.exists(), name
    rig.check()


def test_living_holder_is_believed(make_rig: MakeRig) -> None:
    """C02: a lock that names a living process of this boot is held, though nobody has it open."""
    rig = make_rig(data_bytes=MIB)
    rig.lock_path.parent.mkdir(mode=0o700)
    rig.lock_path.write_bytes(_content())
    last = rig.assert_failed(rig.run(), 3)
    assert str(os.getpid()) in last["error"]
    assert rig.lock_path.read_bytes() == _content(), "somebody else's lock stays as it is"
    rig.lock_path.unlink()
    rig.check()


def _symlink(path: Path, target: Path) -> None:
    target.write_text("precious")
    path.symlink_to(target)


NO_LOCKS: dict[str, Callable[[Path, Path], object]] = {
    "symlink": _symlink,
    "dangling symlink": lambda path, target: path.symlink_to(target),
    "directory": lambda path, target: path.mkdir(),
    "fifo": lambda path, target: os.mkfifo(path),
}


def test_what_is_no_lock_is_refused(make_rig: MakeRig, tmp_path: Path) -> None:
    """C02: a symlink, a directory or a FIFO at `lock_path` is refused; what it points to is unchanged."""
    rig = make_rig(data_bytes=MIB)
    rig.lock_path.parent.mkdir(mode=0o700)
    for name, make in NO_LOCKS.items():
        target = tmp_path / f"target of {name}"
        make(rig.lock_path, target)
        began = time.monotonic()
        run: Run = rig.run()
        last = rig.assert_failed(run)
        assert time.monotonic() - began < 20, name
        assert str(rig.lock_path) in last["error"], name
        assert target.exists() == (name == "symlink"), name
        assert not target.exists() or target.read_text() == "precious"
        if rig.lock_path.is_dir() and not rig.lock_path.is_symlink():
            rig.lock_path.rmdir()
        else:
            rig.lock_path.unlink()
    assert rig.own_snapshots() == []
    rig.check()


def test_lock_is_released_on_failure(rig: Rig) -> None:
    """C02: also a run that fails leaves no lock."""
    rig.write_config(s3={"bucket": "b2s-no-such-bucket"})
    rig.assert_failed(rig.run())
    assert not rig.lock_path.exists()
    rig.write_config(s3={"bucket": rig.bucket})
    rig.check()
