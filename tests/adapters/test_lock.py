"""The run lock against real processes, signals and hostile files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from b2s.adapters import children, host
from b2s.adapters.lock import RunLock
from b2s.errors import LockHeld, LockRefused

# Takes the lock, says how it went, and holds it until stdin ends.
STARTER = """
import sys, time
from b2s.adapters.lock import RunLock
from b2s.errors import LockHeld
lock = RunLock(sys.argv[1], sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
began = time.monotonic()
try:
    stale = lock.acquire()
except LockHeld as error:
    print("held", error.context.get("holder_run_id"), time.monotonic() - began, flush=True)
    sys.exit(3)
print("got", stale.run_id if stale else None, time.monotonic() - began, flush=True)
sys.stdin.readline()
lock.release()
"""

Starter = subprocess.Popen[str]


@pytest.fixture
def starter() -> Iterator[Callable[[Path, str], Starter]]:
    """Start processes that want the lock and wait for a line to go."""
    started: list[Starter] = []

    def start(path: Path, run_id: str) -> Starter:
        process = subprocess.Popen(
            [sys.executable, "-c", STARTER, str(path), run_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: Starter) -> list[str]:
    """Return the words of the next line it prints."""
    assert process.stdout is not None
    return process.stdout.readline().split()


def go(process: Starter) -> None:
    """Let it take its next step."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def holding(starter: Callable[[Path, str], Starter], path: Path, run_id: str) -> Starter:
    """Return a process that holds the lock."""
    process = starter(path, run_id)
    assert line(process) == ["ready"]
    go(process)
    assert line(process)[0] == "got"
    return process


def content(**changes: Any) -> str:
    """Return what this process would write into a lock, with changes."""
    me = children.this_process()
    fields = {"pid": me.pid, "create_time": me.create_time, "host": "h", "boot_id": host.boot_id(), "run_id": "old"}
    return json.dumps({**fields, **changes})


@pytest.mark.parametrize("left_behind", [None, "", "garbage\x00{", content(pid=2**22 + 5)])
def test_of_ten_starters_one_works(
    tmp_path: Path, starter: Callable[[Path, str], Starter], left_behind: str | None
) -> None:
    """Free or stale, exactly one of ten gets it; the others name the winner within two seconds."""
    path = tmp_path / "run" / "b2s.lock"
    if left_behind is not None:
        path.parent.mkdir()
        path.write_text(left_behind)
    processes = [starter(path, f"run-{number}") for number in range(10)]
    for process in processes:
        assert line(process) == ["ready"]
    for process in processes:
        go(process)
    answers = [line(process) for process in processes]
    winners = [number for number, answer in enumerate(answers) if answer[0] == "got"]
    assert len(winners) == 1
    winner = winners[0]
    assert all(answer[1] == f"run-{winner}" for number, answer in enumerate(answers) if number != winner)
    assert all(float(answer[2]) < 2 for answer in answers)
    go(processes[winner])
    assert processes[winner].wait(10) == 0
    assert not path.exists()


def test_the_file_tells_who_holds_it(tmp_path: Path) -> None:
    """Readable JSON, private, gone after release; its directory is made 0700."""
    path = tmp_path / "new" / "b2s.lock"
    with RunLock(str(path), "run-a") as lock:
        assert lock.stale is None
        told = json.loads(path.read_text())
        me = children.this_process()
        assert told == {
            "pid": me.pid,
            "create_time": me.create_time,
            "host": os.uname().nodename,
            "boot_id": host.boot_id(),
            "run_id": "run-a",
        }
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        with pytest.raises(LockHeld, match=rf"run-a.*pid {me.pid}, since \d{{4}}-") as caught:
            RunLock(str(path), "run-b").acquire()
        assert caught.value.exit_code == 3
    assert not path.exists()
    lock.release()


def test_a_killed_holder_is_taken_over(tmp_path: Path, starter: Callable[[Path, str], Starter]) -> None:
    """After SIGKILL the next run gets it and learns whose it was."""
    path = tmp_path / "b2s.lock"
    process = holding(starter, path, "dead-run")
    process.kill()
    process.wait()
    with RunLock(str(path), "next") as lock:
        assert lock.stale is not None
        assert (lock.stale.run_id, lock.stale.pid) == ("dead-run", process.pid)


def test_a_stopped_holder_still_holds(tmp_path: Path, starter: Callable[[Path, str], Starter]) -> None:
    """SIGSTOP is no death."""
    path = tmp_path / "b2s.lock"
    process = holding(starter, path, "stopped")
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(LockHeld, match="stopped"):
        RunLock(str(path), "next").acquire()


@pytest.mark.parametrize(
    "stale",
    [
        content(create_time=children.this_process().create_time - 1000),
        content(create_time=0),
        content(pid=2**22 + 5),
        content(pid=-1),
        content(pid=2**80),
        content(pid="1"),
        content(pid=True),
        content(create_time=1e400),
        content(boot_id="00000000-0000-0000-0000-000000000000"),
        "null",
        "[" * 50_000,
        "{}",
        " ",
    ],
)
def test_stale_content_is_taken_over(tmp_path: Path, stale: str) -> None:
    """Reused pids, other boots, dead pids and nonsense do not keep the lock."""
    path = tmp_path / "b2s.lock"
    path.write_text(stale)
    with RunLock(str(path), "next") as lock:
        assert lock.stale is not None
        assert json.loads(path.read_text())["run_id"] == "next"


def test_a_living_holder_is_believed_without_its_flock(tmp_path: Path) -> None:
    """A file that names a living process with the right create time is held, and left alone."""
    path = tmp_path / "b2s.lock"
    path.write_text(content(run_id="alive"))
    with pytest.raises(LockHeld, match="alive"):
        RunLock(str(path), "next").acquire()
    assert json.loads(path.read_text())["run_id"] == "alive"


def test_a_symlink_is_refused_and_its_target_unchanged(tmp_path: Path) -> None:
    """Nothing is written through a link, nor through a second name of someone's file."""
    target = tmp_path / "precious"
    target.write_text("precious")
    path = tmp_path / "b2s.lock"
    path.symlink_to(target)
    with pytest.raises(LockRefused) as caught:
        RunLock(str(path), "next").acquire()
    assert caught.value.hint
    path.unlink()
    path.hardlink_to(target)
    with pytest.raises(LockRefused):
        RunLock(str(path), "next").acquire()
    path.unlink()
    path.symlink_to(tmp_path / "not-there")
    with pytest.raises(LockRefused):
        RunLock(str(path), "next").acquire()
    assert target.read_text() == "precious"
    assert not (tmp_path / "not-there").exists()


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """Directory, FIFO, socket-like and unusable places end in a clear error, without waiting."""
    directory, fifo = tmp_path / "directory", tmp_path / "fifo"
    directory.mkdir()
    os.mkfifo(fifo)
    (tmp_path / "file").touch()
    began = time.monotonic()
    for path in (directory, fifo, tmp_path / "file" / "b2s.lock", Path("/proc/b2s.lock"), Path("/dev/null")):
        with pytest.raises(LockRefused):
            RunLock(str(path), "next").acquire()
    assert time.monotonic() - began < 1


def test_children_do_not_keep_it_alive(tmp_path: Path) -> None:
    """A process started while the lock is held does not inherit it."""
    path = tmp_path / "b2s.lock"
    lock = RunLock(str(path), "first")
    lock.acquire()
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        lock._forget()  # as if we had been killed: no release, the file stays
        path.write_text(content(pid=2**22 + 5))
        with RunLock(str(path), "second") as second:
            assert second.stale is not None
        child.kill()


def test_release_leaves_another_runs_file_alone(tmp_path: Path) -> None:
    """When someone replaced the file under us, release does not remove theirs."""
    path = tmp_path / "b2s.lock"
    lock = RunLock(str(path), "first")
    lock.acquire()
    path.unlink()
    path.write_text("someone else's")
    lock.release()
    assert path.read_text() == "someone else's"


def test_take_and_release_in_turns_never_overlap(tmp_path: Path) -> None:
    """Five processes take and release as fast as they can; a counter they change without care stays right."""
    path, counter = tmp_path / "b2s.lock", tmp_path / "counter"
    counter.write_text("0")
    code = (
        "import sys\nfrom pathlib import Path\nfrom b2s.adapters.lock import RunLock\nfrom b2s.errors import LockHeld\n"
        "done = 0\ncounter = Path(sys.argv[2])\n"
        "while done < 20:\n"
        "    lock = RunLock(sys.argv[1], 'r')\n"
        "    try:\n        lock.acquire()\n    except LockHeld:\n        continue\n"
        "    counter.write_text(str(int(counter.read_text()) + 1))\n    lock.release()\n    done += 1\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path), str(counter)]) for _ in range(5)]
    try:
        assert [process.wait(60) for process in processes] == [0] * 5
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert counter.read_text() == "100"
    assert not path.exists()
