"""One bandwidth limit for several processes."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from b2s.adapters.bandwidth import Bandwidth
from b2s.errors import Stopped

SENDER = """
import sys, time
from pathlib import Path
from b2s.adapters.bandwidth import Bandwidth
line = Bandwidth(Path(sys.argv[1]), int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
sent, ends_at = 0, time.monotonic() + float(sys.argv[3])
while time.monotonic() < ends_at:
    line.take(line.slice_bytes)
    sent += line.slice_bytes
print(sent, time.monotonic())
"""


def senders(path: Path, rate: int, seconds: float, count: int) -> list[subprocess.Popen[str]]:
    """Start processes that take as much as they get, and let them begin together."""
    found = [
        subprocess.Popen(
            [sys.executable, "-c", SENDER, str(path), str(rate), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    for each in found:
        assert each.stdout is not None and each.stdout.readline() == "ready\n"
    return found


def test_two_processes_share_the_limit(tmp_path: Path) -> None:
    """Two senders together get the rate within 5 %, each about half of it."""
    rate, seconds = 2_000_000, 2.0
    processes = senders(tmp_path / "line", rate, seconds, 2)
    began = time.monotonic()
    for each in processes:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    results = [each.communicate(timeout=30)[0].split() for each in processes]
    elapsed = max(float(ended) for _, ended in results) - began
    shares = [int(sent) for sent, _ in results]
    assert sum(shares) / elapsed == pytest.approx(rate, rel=0.05)
    assert min(shares) > 0.35 * sum(shares)


def test_killed_sender_holds_nobody_up(tmp_path: Path) -> None:
    """After SIGKILL of a sender the others go on."""
    (process,) = senders(tmp_path / "line", 1_000_000, 30, 1)
    with process:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        line = Bandwidth(tmp_path / "line", 1_000_000)
        line.take(line.slice_bytes)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    began = time.monotonic()
    line.take(line.slice_bytes)
    line.take(line.slice_bytes)
    assert time.monotonic() - began < 1
    line.close()


@pytest.mark.parametrize(
    "left", [b"", b"abc", struct.pack("<d", 1e18), struct.pack("<d", float("nan")), struct.pack("<d", -5.0), b"x" * 999]
)
def test_file_with_nonsense(tmp_path: Path, left: bytes) -> None:
    """What an older boot or anybody else left in the file does not stop the line."""
    (tmp_path / "line").write_bytes(left)
    line = Bandwidth(tmp_path / "line", 1_000_000)
    assert line.take(1) == 0
    line.close()


def test_wait_can_be_stopped(tmp_path: Path) -> None:
    """A sender that waits for its turn notices that the run is to end."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def stop() -> None:
        if now > 3:
            raise Stopped("SIGTERM")

    line = Bandwidth(tmp_path / "line", 1000, monotonic=lambda: now, sleep=sleep)
    line.take(100_000)
    with pytest.raises(Stopped):
        line.take(1, stop)
    assert now < 4
    line.close()
