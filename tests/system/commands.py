"""`python -m b2s` as a user or cron calls it, watched from outside: what it said, how it ended, what memory it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.parts import workspace
from tests.parts.servers import REGION, S3Server

REPOSITORY = Path(__file__).parents[2]
RUN_SECONDS_MAX = 100.0
SAMPLE_SECONDS = 0.1

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """One call that has ended."""

    exit_code: int
    stdout: str
    stderr: str
    peak_pss_bytes: int  # of the whole process tree, sampled; 0 when nobody asked for it
    peak_spool_bytes: int  # what its spool occupied, seen from outside; 0 when nobody asked for it

    @property
    def events(self) -> list[Event]:
        """Return its log; every line of stderr must be one JSON object."""
        found = [json.loads(line) for line in self.stderr.splitlines()]
        assert all(isinstance(event, dict) for event in found), self.stderr
        return found

    @property
    def last(self) -> Event:
        """Return the last event."""
        return self.events[-1]

    def event(self, name: str) -> Event:
        """Return the one event of this name."""
        (found,) = [event for event in self.events if event["event"] == name]
        return found


class Caller:
    """Calls b2s with an environment of its own, like cron's, and keeps everything that was said."""

    def __init__(self, directory: Path, server: S3Server) -> None:
        self.said = directory / "said"
        self.said.mkdir()
        hooks = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "LANG": "C",
            "HOME": str(directory),
            "PYTHONPATH": str(REPOSITORY),
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            workspace.MARKER: workspace.tag(),
            **hooks,
        }
        self._calls = 0

    def call(
        self,
        *arguments: str | Path,
        environment: Mapping[str, str | None] | None = None,
        seconds: float = RUN_SECONDS_MAX,
        sample_memory: bool = False,
        spools: Path = Path("/dev/shm"),
    ) -> Done:
        """Run ``b2s *arguments`` to its end.

        Args:
            environment: What differs from cron's; a name that is None is unset.
            seconds: It must end within these.
            sample_memory: Watch memory and spool meanwhile.
            spools: Where its spool is made.
        """
        env = {**self.environment, **(environment or {})}
        self._calls += 1
        stdout, stderr = self.said / f"{self._calls:02}.out", self.said / f"{self._calls:02}.err"
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "b2s", *map(str, arguments)],
                cwd="/",
                env={name: value for name, value in env.items() if value is not None},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
            try:
                peaks = _watch(process, seconds, spools) if sample_memory else (0, 0)
                process.wait(seconds)
            finally:
                process.kill()
                process.wait()
        return Done(process.returncode, stdout.read_text(), stderr.read_text(), *peaks)

    def succeed(self, *arguments: str | Path, **how: Any) -> Done:
        """Run it; it must exit 0."""
        done = self.call(*arguments, **how)
        assert done.exit_code == 0, f"b2s {arguments} exited {done.exit_code}: {done.stderr[-3000:]}"
        return done


def _watch(process: subprocess.Popen[bytes], seconds: float, spools: Path) -> tuple[int, int]:
    """Return the highest PSS of the process and everything below it, and of its spool, until it ends."""
    pss = spool = 0
    root = psutil.Process(process.pid)
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        pss = max(pss, sum(_pss(each) for each in _family(root)))
        spool = max(spool, sum(_occupied(each) for each in _spools_of(process.pid, spools)))
        time.sleep(SAMPLE_SECONDS)
    return pss, spool


def _spools_of(pid: int, directory: Path) -> list[Path]:
    """Return the spools of one run, by the label in them."""
    found = []
    for label in directory.glob("b2s-*/owner.json"):
        try:
            if json.loads(label.read_text())["pid"] == pid:
                found.append(label.parent)
        except (OSError, ValueError):
            continue  # being made, or removed just now
    return found


def _occupied(directory: Path) -> int:
    """Return the bytes that the slots of a spool take up on their filesystem."""
    occupied = 0
    for slot in directory.glob("slot-*"):
        try:
            occupied += slot.stat().st_blocks * 512
        except OSError:
            continue
    return occupied


def _family(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
