"""Processes by pid and create time, with real processes and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from b2s.adapters import children
from b2s.adapters.children import ProcessId

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start processes that are gone after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def identity(process: subprocess.Popen[bytes]) -> ProcessId:
    """Return who a process is."""
    found = children.identify(process.pid)
    assert found is not None
    return found


def test_a_process_is_itself_and_not_a_namesake(spawn: Spawn) -> None:
    """The same pid with another create time is somebody else and is never signalled."""
    process = spawn("sleep", "60")
    me = identity(process)
    namesake = ProcessId(me.pid, me.create_time - 5)
    assert children.is_alive(me)
    assert not children.is_alive(namesake)
    assert children.leftovers([namesake, me]) == [me]
    assert children.end([namesake], 0.0).gone == (namesake,)
    assert process.poll() is None
    assert children.is_alive(children.this_process())


def test_the_dead_are_dead_before_they_are_fetched(spawn: Spawn) -> None:
    """A zombie is not alive; neither is a pid nobody has, nor an absurd one."""
    process = spawn("sleep", "60")
    me = identity(process)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not children.is_alive(me)
    process.wait()
    assert children.identify(process.pid) is None
    for pid in (-1, 0, 2**22 + 1, 2**80):
        assert not children.is_alive(ProcessId(pid, 1.0))


def test_a_stopped_process_lives(spawn: Spawn) -> None:
    """SIGSTOP does not end anything."""
    process = spawn("sleep", "60")
    process.send_signal(signal.SIGSTOP)
    assert children.is_alive(identity(process))


def test_ending_asks_then_kills_and_stays_in_its_bounds(spawn: Spawn) -> None:
    """One that ends on TERM, one that ignores it, one that is stopped: all gone in time."""
    stubborn = spawn(
        sys.executable,
        "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
    )
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    stopped = spawn("sleep", "60")
    stopped.send_signal(signal.SIGSTOP)
    processes = [identity(stubborn), identity(stopped), identity(spawn("sleep", "60"))]
    began = time.monotonic()
    ended = children.end(processes, 0.3)
    assert time.monotonic() - began < 3
    assert ended.gone == tuple(processes)
    assert ended.unkillable == ()
    assert stubborn.wait(5) == -signal.SIGKILL


def test_activity_tells_work_from_standing_still(spawn: Spawn) -> None:
    """What computes, wakes up now and then, or has a child that does, is active; what sleeps or is stopped is not."""
    busy = spawn(sys.executable, "-c", "while True: pass")
    stopped = spawn("sh", "-c", "kill -STOP $$")
    asleep = spawn("sleep", "60")
    ticking = spawn("sh", "-c", "while :; do sleep 0.05; done")
    waiting = spawn("sh", "-c", f"{sys.executable} -c 'while True: pass' & wait")
    processes = {"busy": busy, "stopped": stopped, "asleep": asleep, "ticking": ticking, "waiting": waiting}
    deadline = time.monotonic() + 20
    expected = {"busy": True, "stopped": False, "asleep": False, "ticking": True, "waiting": True}
    while True:
        before = {name: children.activity([process.pid]) for name, process in processes.items()}
        time.sleep(0.3)  # the time in which something may happen, not a wait
        active = {name: children.activity([process.pid]) != before[name] for name, process in processes.items()}
        if active == expected:
            break
        assert time.monotonic() < deadline, active
    busy.kill()
    busy.wait()
    assert children.activity([busy.pid]) == ()
    for child in psutil.Process(waiting.pid).children():
        child.kill()


def test_cpu_use_tells_running_from_waiting_for_a_cpu(spawn: Spawn) -> None:
    """Two that compute on one CPU have half of it each; one that sleeps wants none."""
    cpu = str(min(os.sched_getaffinity(0)))
    rivals = [spawn("taskset", "-c", cpu, sys.executable, "-c", "while True: pass") for _ in range(2)]
    asleep = spawn("sleep", "60")
    deadline = time.monotonic() + 20
    while True:
        use = [children.cpu_use([rival.pid]) for rival in rivals]
        if all(each.ran_seconds > 0.2 and each.waited_seconds > 0.1 for each in use):
            break
        assert time.monotonic() < deadline, use
        time.sleep(0.1)
    assert children.cpu_use([asleep.pid]).ran_seconds < 0.1
    together = children.cpu_use([rival.pid for rival in rivals])
    # The kernel counts whole nanoseconds; a sum of two floats is off by less than one.
    assert round(together.ran_seconds * 1e9) >= sum(round(each.ran_seconds * 1e9) for each in use)
    for rival in rivals:
        rival.kill()
        rival.wait()
    assert children.cpu_use([rival.pid for rival in rivals]) == children.cpu_use([])
