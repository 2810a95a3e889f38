"""The first command of the README does what it says, and cleans up after itself whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import invariants, workspace
from tests.system.commands import REPOSITORY

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SECONDS_MAX = 240.0


def start(output: Path) -> subprocess.Popen[bytes]:
    """Start the job that `scripts/quickstart` runs once everything is installed."""
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, REPOSITORY / "scripts/quickstart.d/main_job.py"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the whole group, and the group is not ours
        )


def assert_nothing_left(process: subprocess.Popen[bytes], before: invariants.Traces) -> None:
    """Assert that no process, spool, mount, loop device or directory of the job is left."""
    invariants.no_leftovers(before)
    for base in workspace.bases():
        assert list(base.glob(f"test-b2s-{process.pid}-*")) == []
        assert [mount for mount in workspace.mounts_below(base) if f"-{process.pid}-" in str(mount)] == []


def test_quickstart(tmp_path: Path) -> None:
    """It ends in a report that says equal."""
    before = invariants.observe()
    output = tmp_path / "output"
    process = start(output)
    assert process.wait(SECONDS_MAX) == 0, output.read_text()
    text = output.read_text()
    report = text.partition("\nReport\n")[2]
    assert [line.split("  ")[1].strip() for line in report.splitlines()[:4]] == [
        "full backup",
        "incremental",
        "restore",
        "compared",
    ]
    assert "entries: equal" in report
    assert max(len(line) for line in report.splitlines()) <= 100
    assert_nothing_left(process, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_stopped_quickstart_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    """Stopped in the middle of a backup it removes everything, and its exit code says which signal it was."""
    before = invariants.observe()
    output = tmp_path / "output"
    process = start(output)
    workspace.poll(lambda: "$ b2s backup" in output.read_text(), seconds=SECONDS_MAX, what="the first backup began")
    os.killpg(process.pid, number)
    assert process.wait(60) == 128 + number, output.read_text()
    assert "everything was removed again" in output.read_text()
    assert "Traceback" not in output.read_text()
    assert_nothing_left(process, before)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_quickstart_in_a_fresh_clone(tmp_path: Path) -> None:
    """The README's command works in a fresh clone, with a virtual environment of its own."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", REPOSITORY, clone], check=True)
    done = subprocess.run(["scripts/quickstart"], cwd=clone, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "entries: equal" in done.stdout
    status = subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True).stdout
    assert status == ""
    shutil.rmtree(clone)
