"""One invocation of b2s as cron would start it: watched through its log, killed by pid."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.parts import workspace
from tests.parts.servers import S3Server

REPOSITORY = Path(__file__).parents[2]
RUN_SECONDS_MAX = 90.0  # no run of a test takes longer; a hang is a failure
CHILDREN_SECONDS_MAX = 2.0  # how long a child may outlive its SIGKILLed supervisor

Event = dict[str, Any]


def cron_environment(server: S3Server, home: Path, **extra: str) -> dict[str, str]:
    """Return what cron gives a job, plus credentials; nothing of our own environment but coverage's hooks."""
    hooks = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C",
        "SHELL": "/bin/sh",
        "HOME": str(home),
        "PYTHONPATH": str(REPOSITORY),
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_EC2_METADATA_DISABLED": "true",
        workspace.MARKER: workspace.tag(),
        **hooks,
        **extra,
    }


@dataclass(frozen=True, slots=True)
class Child:
    """A process that a run said it started."""

    pid: int
    create_time: float | None  # None: it was gone before we looked
    process: str  # "btrfs", "chunker", "uploader"

    @property
    def alive(self) -> bool:
        """Tell whether this very process still runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            same = self.create_time is None or abs(process.create_time() - self.create_time) < 0.05
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def signal(self, number: int) -> bool:
        """Send a signal; tell whether it was still there."""
        if not self.alive:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


class Run:
    """A started `b2s`; `log` holds what it wrote to stderr, `output` what it wrote to stdout."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, **popen: Any) -> None:
        self.log = log
        self.output = log.with_suffix(".out")
        with log.open("wb") as stderr, self.output.open("wb") as stdout:
            self.process = subprocess.Popen(
                command,
                **{
                    "cwd": "/",
                    "env": dict(environment),
                    "stdin": subprocess.DEVNULL,
                    "stdout": stdout,
                    "stderr": stderr,
                    "start_new_session": True,
                    **popen,
                },
            )
        self.started = time.monotonic()
        self.command_lines: set[str] = set()  # of its processes, whenever somebody looked
        self._create_times: dict[int, float | None] = {}

    def events(self) -> list[Event]:
        """Return what it logged so far; every whole line must be a JSON object."""
        lines = self.log.read_bytes().split(b"\n")[:-1]
        found = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                raise AssertionError(f"stderr holds a line that is not JSON: {line[:500]!r}") from None
            assert isinstance(event, dict), line
            found.append(event)
        for event in found:
            if event["event"] == "process_started" and event["child_pid"] not in self._create_times:
                self._create_times[event["child_pid"]] = _create_time(event["child_pid"])
        return found

    def named(self, name: str, **fields: object) -> list[Event]:
        """Return the events of this name whose fields are these."""
        return [
            event
            for event in self.events()
            if event["event"] == name and all(event.get(field) == value for field, value in fields.items())
        ]

    def wait_event(self, name: str, *, count: int = 1, seconds: float = 30.0, **fields: object) -> Event:
        """Wait until an event was logged `count` times; return the last of them."""
        found: list[Event] = []

        def there() -> bool:
            self.descendants()
            found[:] = self.named(name, **fields)
            if len(found) < count and self.process.poll() is not None:
                found[:] = self.named(name, **fields)  # written between our look and its end
                assert len(found) >= count, f"the run ended without {name} {fields}: {self.tail()}"
            return len(found) >= count

        try:
            workspace.poll(there, seconds=seconds, what=f"event {name} {fields}")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.tail()}") from None
        return found[count - 1]

    def children(self, process: str | None = None) -> list[Child]:
        """Return the processes it said it started that still live."""
        return [child for child in self.all_children(process) if child.alive]

    def all_children(self, process: str | None = None) -> list[Child]:
        """Return the processes it said it started, the dead too."""
        started = self.named("process_started", **({"child": process} if process else {}))
        return [
            Child(event["child_pid"], self._create_times.get(event["child_pid"]), event["child"]) for event in started
        ]

    def child(self, process: str, *, seconds: float = 30.0) -> Child:
        """Wait until a child of this kind was started and lives; return it."""
        self.wait_event("process_started", seconds=seconds, child=process)
        return self.children(process)[-1]

    def fork_server(self) -> psutil.Process | None:
        """Return the process that starts the others: a fork of the supervisor that ignores SIGTERM; None so far."""
        with contextlib.suppress(psutil.Error, OSError):
            supervisor = psutil.Process(self.process.pid)
            for each in supervisor.children():
                if each.cmdline() == supervisor.cmdline() and _ignores(each.pid, signal.SIGTERM):
                    return each
        return None

    def kill(self) -> None:
        """SIGKILL the supervisor and see that every process it had ends within two seconds."""
        descendants = self.descendants()
        self.process.kill()
        self.process.wait(10)
        self.assert_gone(descendants)

    def assert_gone(self, processes: Sequence[psutil.Process], seconds: float = CHILDREN_SECONDS_MAX) -> None:
        """Assert that these processes end soon."""
        try:
            workspace.poll(lambda: not any(_runs(each) for each in processes), seconds=seconds, what="children gone")
        except TimeoutError:
            left = [f"{each.pid} {' '.join(each.cmdline())}" for each in processes if _runs(each)]
            raise AssertionError(f"children outlive the supervisor: {left}") from None

    def send_signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def wait(self, seconds: float = RUN_SECONDS_MAX) -> int:
        """Wait for the end; return the exit status (negative: the signal). A run that does not end is a failure."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            descendants = self.descendants()
            self.process.kill()
            for each in descendants:
                if _runs(each):
                    each.kill()
            raise AssertionError(f"the run hangs: not over within {seconds} s: {self.tail()}") from None

    @property
    def last(self) -> Event:
        """Return the last event."""
        events = self.events()
        assert events, "the run logged nothing"
        return events[-1]

    def tail(self) -> str:
        """Return the end of the log, for messages."""
        return self.log.read_text(errors="replace")[-6000:]

    def descendants(self) -> list[psutil.Process]:
        """Return its living processes, and remember their command lines."""
        found = []
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(self.process.pid).children(recursive=True)
        for each in found:
            with contextlib.suppress(psutil.Error):
                self.command_lines.add(" ".join(each.cmdline()))
        return found


def b2s_command(*arguments: str) -> list[str]:
    """Return the command line of `b2s` with the running Python."""
    return [sys.executable, "-m", "b2s", *arguments]


def _create_time(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _ignores(pid: int, number: int) -> bool:
    (mask,) = (line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigIgn" in line)
    return bool(int(mask, 16) >> (number - 1) & 1)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


STOP_SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
"""The exit code after each."""
