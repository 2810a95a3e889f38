"""The crash sweep (and D02): SIGKILL at the N-th system call of a class, N = 1, 2, 3 … until a run meets no fault.

strace delivers the signal on entry, so the call itself is not done. It counts per process and per system call: the
N-th rename of any process of the run kills that process, the supervisor, a child or the `btrfs` tool. Each step
makes one incremental backup, kills it, runs once more without a fault and asserts every invariant.
"""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fault.conftest import MakeRig
from tests.fault.harness import MIB, Rig
from tests.parts import workspace
from tests.parts.faults import Hold

_CALL = re.compile(r"^(\d+) +(\w+)\(", re.MULTILINE)


def _state_files(rig: Rig) -> tuple[Path, ...]:
    sides = ("", "-wal", "-shm", "-journal", ".new", ".host-id")
    files = [Path(f"{rig.state_path}{side}") for side in sides]
    return (*files, rig.state_path.parent, rig.lock_path, rig.lock_path.parent, rig.spool_directory)


def _subvolumes(rig: Rig) -> tuple[Path, ...]:
    return (rig.snapshots, rig.source, rig.filesystem.path)


@dataclass(frozen=True, slots=True)
class Sweep:
    """One class of system calls; with `paths`, only calls on exactly these files and directories."""

    calls: str
    paths: Callable[[Rig], tuple[Path, ...]] | None = None
    error: str | None = None  # instead of SIGKILL: this call and all later ones fail so


SWEEPS = {
    "rename": Sweep("rename,renameat,renameat2,link,linkat"),
    "fsync": Sweep("fsync,fdatasync"),
    "create": Sweep("openat", _state_files),
    "write": Sweep("pwrite64,ftruncate", _state_files),
    "room": Sweep("mkdir,mkdirat,fallocate"),
    "unlink": Sweep("unlink,unlinkat,rmdir"),
    "snapshot": Sweep("ioctl", _subvolumes),
    "state disk full": Sweep("pwrite64,ftruncate,fallocate", _state_files, "ENOSPC"),
    "state disk broken": Sweep("pwrite64,fsync,fdatasync,rename,unlink", _state_files, "EIO"),
    "state disk read-only": Sweep("openat,rename,unlink", _state_files, "EROFS"),
}


def crash(rig: Rig, sweep: Sweep, number: int, *, fresh: bool) -> bool:
    """Back up a change, killing at the `number`-th call; tell whether the run met the fault."""
    if fresh:
        shutil.rmtree(rig.state_path.parent, ignore_errors=True)
    rig.fill(6 * MIB, seed=number, replace=True)
    trace = rig.directory / "trace"
    only = [word for path in (sweep.paths(rig) if sweep.paths else ()) for word in ("-P", str(path))]
    fault = f"error={sweep.error}:when={number}+" if sweep.error else f"signal=SIGKILL:when={number}"
    inject = f"inject={sweep.calls}:{fault}"
    strace = ("strace", "-f", "-qq", "-o", str(trace), *only, "-e", f"trace={sweep.calls}", "-e", inject)
    run = rig.run("--once", before=strace, environment={"PYTHONDONTWRITEBYTECODE": "1"})  # its renames are not ours
    if sweep.error and run.process.returncode != 0:
        assert "bug" not in str(rig.assert_failed(run)["hint"])
    calls = Counter(_CALL.findall(trace.read_text(errors="replace")))
    return bool(calls) and max(calls.values()) >= number


def prepared(make_rig: MakeRig) -> Rig:
    """Return a rig with one full backup that keeps one snapshot, so that every backup also deletes one."""
    rig = make_rig(data_bytes=MIB, snapshots={"retain": 1})
    rig.run_clean()
    return rig


BACKUPS_PER_RIG = 20


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fresh", [False, True], ids=["", "no-state"])
@pytest.mark.parametrize("name", SWEEPS)
def test_sweep(make_rig: MakeRig, name: str, fresh: bool) -> None:
    """Issue 3's bar: every N until no fault is met, no violation."""
    rig = prepared(make_rig)
    number = 1
    while crash(rig, SWEEPS[name], number, fresh=fresh):
        rig.check(once=True, forgotten=fresh)
        number += 1
        if number % BACKUPS_PER_RIG == 0:  # a state is rebuilt with a write for every backup: there would be no end
            rig = prepared(make_rig)
    assert number > 1, "the fault was never met: the sweep proves nothing"
    rig.check(once=True, forgotten=fresh)


@pytest.mark.parametrize("seed", [1, 2])
def test_sample_of_the_sweep(make_rig: MakeRig, seed: int) -> None:
    """A few seeded points of the sweep."""
    rig = prepared(make_rig)
    rng = random.Random(seed)
    for name in rng.sample(sorted(SWEEPS), 3):
        fresh = rng.random() < 0.5
        crash(rig, SWEEPS[name], rng.randrange(1, 8), fresh=fresh)
        rig.check(once=True, forgotten=fresh)


def crash_at_call(rig: Rig, number: int, *, reply: bool) -> bool:
    """Back up a change, killing the supervisor at its run's `number`-th S3 call; tell whether there was one."""
    rig.fill(6 * MIB, seed=number, replace=True)
    rig.proxy.rule(None, Hold(reply=reply), nth=number, times=None)
    run = rig.start("--once")

    def reached() -> bool:
        return run.process.poll() is not None or any(isinstance(each.fault, Hold) for each in rig.proxy.in_flight())

    workspace.poll(reached, seconds=60, what=f"call {number} or the end")
    met = run.process.poll() is None
    if met:
        run.kill()
    rig.proxy.clear()
    return met


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("reply", [False, True], ids=["before", "after"])
def test_sweep_over_calls_to_the_store(make_rig: MakeRig, reply: bool) -> None:
    """SIGKILL of the supervisor before and after the N-th call to the store, every N until there is none."""
    rig = prepared(make_rig)
    number = 1
    while crash_at_call(rig, number, reply=reply):
        rig.check(once=True)
        number += 1
    assert number > 10
    rig.check(once=True)
