"""A long `btrfs`: drained, described, ended, and gone with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from b2s.adapters.btrfs_process import STDERR_TAIL_BYTES, BtrfsProcess, describe_exit
from b2s.errors import BtrfsError


def script(directory: Path, text: str) -> list[str]:
    """Write a `btrfs` of our own and return the command that runs it."""
    path = directory / "btrfs"
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return [str(path), "send"]


def ended(process: BtrfsProcess) -> int:
    """Wait for its end and return its status."""
    status = process.wait(20)
    assert status is not None
    return status


def test_its_exit_is_told_in_words(tmp_path: Path) -> None:
    """Exit status and signal name; None while it runs."""
    process = BtrfsProcess.start(script(tmp_path, "echo wrong >&2; exit 3"))
    assert ended(process) == 3
    assert process.describe_exit() == "exit status 3"
    assert process.stderr_tail() == "wrong"
    process = BtrfsProcess.start(script(tmp_path, "kill -KILL $$"))
    assert ended(process) == -signal.SIGKILL
    assert process.describe_exit() == "killed by SIGKILL"
    assert describe_exit(None) == "still running"
    assert describe_exit(-63) == "killed by signal 63"


def test_megabytes_on_stderr_neither_block_nor_fill_memory(tmp_path: Path) -> None:
    """2 MiB are drained; the last 4 KiB are kept, the very last line among them."""
    process = BtrfsProcess.start(
        script(tmp_path, "head -c 2097152 /dev/zero | tr '\\0' x >&2; echo 'the end' >&2; exit 1")
    )
    assert ended(process) == 1
    tail = process.stderr_tail()
    assert tail.endswith("xthe end")
    assert len(tail) <= STDERR_TAIL_BYTES


def test_undecodable_stderr_is_kept_as_escapes(tmp_path: Path) -> None:
    """File names of any bytes may appear in messages."""
    process = BtrfsProcess.start(script(tmp_path, "printf 'ERROR: \\xff\\n' >&2"))
    ended(process)
    assert process.stderr_tail() == "ERROR: \\xff"


def test_stdout_goes_where_it_was_told_and_nothing_else_is_inherited(tmp_path: Path) -> None:
    """The pipe ends with the process: no copy of our descriptors leaks into it."""
    reader, writer = os.pipe()
    other_reader, other_writer = os.pipe()
    os.set_inheritable(other_writer, True)
    process = BtrfsProcess.start(script(tmp_path, "echo stream; ls /proc/self/fd | wc -l >&2"), stdout=writer)
    os.close(writer)
    os.close(other_writer)
    with os.fdopen(reader, "rb") as stream, os.fdopen(other_reader, "rb") as other:
        assert stream.read() == b"stream\n"
        assert other.read() == b""
    ended(process)
    assert int(process.stderr_tail()) <= 4


def test_stop_asks_first_and_kills_then(tmp_path: Path) -> None:
    """One that ends on TERM, one that ignores it, one that is stopped, one that is over already."""
    polite = BtrfsProcess.start(["/bin/sleep", "60"])
    assert polite.stop(5) == -signal.SIGTERM
    marker = tmp_path / "ready"
    stubborn = BtrfsProcess.start(
        script(tmp_path, f"trap '' TERM; touch {marker}; while :; do read -t 1 <> <(:); done")
    )
    deadline = time.monotonic() + 10
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    assert stubborn.stop(0.2) == -signal.SIGKILL
    assert time.monotonic() - began < 4
    frozen = BtrfsProcess.start(["/bin/sleep", "60"])
    os.kill(frozen.pid, signal.SIGSTOP)
    assert frozen.stop(5) == -signal.SIGTERM
    assert frozen.stop(5) == -signal.SIGTERM


def test_an_unkillable_one_is_named_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """When even SIGKILL does not end it, stop() comes back with the pid; here the kill is kept from it."""
    monkeypatch.setattr("b2s.adapters.btrfs_process._KILLED_SECONDS", 0.2)
    process = BtrfsProcess.start(["/bin/sleep", "60"])
    with monkeypatch.context() as patched:
        patched.setattr("os.killpg", lambda *_: None)
        with pytest.raises(BtrfsError, match=f"pid {process.pid}"):
            process.stop(0.1)
    process.stop(1)


def test_ctrl_c_does_not_reach_it() -> None:
    """It is the leader of its own session, out of the terminal's reach."""
    process = BtrfsProcess.start(["/bin/sleep", "60"])
    try:
        assert os.getsid(process.pid) == process.pid != os.getsid(0)
    finally:
        process.stop(1)


def test_priorities_are_set() -> None:
    """Both nice and ionice arrive at the process that has the pid."""
    process = BtrfsProcess.start(["/bin/sleep", "60"], nice=7, ionice="best-effort:6")
    try:
        watched = psutil.Process(process.pid)
        assert watched.nice() == 7
        assert watched.ionice() == (psutil.IOPRIO_CLASS_BE, 6)
    finally:
        process.stop(1)


def test_it_dies_with_a_killed_parent() -> None:
    """SIGKILL of the supervisor ends it too, and the pid we know is the real one."""
    code = (
        "import time; from b2s.adapters.btrfs_process import BtrfsProcess\n"
        "print(BtrfsProcess.start(['/bin/sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        deadline = time.monotonic() + 10
        while child.name() != "sleep" and time.monotonic() < deadline:
            time.sleep(0.01)
        parent.kill()
    gone, _ = psutil.wait_procs([child], timeout=2)
    assert gone


def test_a_missing_program_is_an_error_of_ours(tmp_path: Path) -> None:
    """Without setpriv the start fails; with it, the exit status and stderr tell."""
    try:
        process = BtrfsProcess.start([str(tmp_path / "nothing"), "send"])
    except BtrfsError:
        return
    assert ended(process) == 127
    assert "No such file" in process.stderr_tail()
