"""Processes by identity: a pid alone is reused, a pid with its create time is not. psutil knows both."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

from b2s.core.appetite import CpuUse

# psutil derives the create time from clock ticks (10 ms), so two readings of one process agree far closer than this.
_SAME_SECONDS = 0.05
_KILLED_SECONDS = 2.0  # how long a killed process may take to vanish before it counts as unkillable


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for ever, not only while it lives."""

    pid: int
    create_time: float  # seconds since the epoch, as psutil says


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of processes that should end."""

    gone: tuple[ProcessId, ...]
    unkillable: tuple[ProcessId, ...]  # still there after SIGKILL: they wait in the kernel


def this_process() -> ProcessId:
    """Return the identity of the calling process."""
    process = psutil.Process()
    return ProcessId(process.pid, process.create_time())


def owner_label(run_id: str) -> dict[str, object]:
    """Return what a directory is labelled with as this process's; `owner_lives` reads it."""
    me = this_process()
    return {"pid": me.pid, "create_time": me.create_time, "run_id": run_id}


def owner_lives(label: Mapping[str, object]) -> bool:
    """Tell whether the process that a label names still runs; a label that names none belongs to nobody."""
    pid, create_time = label.get("pid"), label.get("create_time")
    if not isinstance(pid, int) or not isinstance(create_time, int | float):
        return False
    return is_alive(ProcessId(pid, float(create_time)))


def identify(pid: int) -> ProcessId | None:
    """Return the identity of the process that has this pid now, None when there is none."""
    try:
        return ProcessId(pid, psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def is_alive(process: ProcessId) -> bool:
    """Tell whether this very process still runs; a zombie does not, a stopped process does."""
    return _living(process) is not None


def leftovers(recorded: Iterable[ProcessId]) -> list[ProcessId]:
    """Return which of the recorded processes still run."""
    return [process for process in recorded if is_alive(process)]


def activity(pids: Iterable[int]) -> tuple[tuple[int, int, float], ...]:
    """Return what changes as soon as one of these processes, or one below them, does anything at all.

    Those are the context switches and the CPU time of each. A process that works has more of one or the other all the
    time; one that is stopped, or that waits for what never comes, has not.
    """
    found: list[tuple[int, int, float]] = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                times = each.cpu_times()
                found.append((each.pid, sum(each.num_ctx_switches()), times.user + times.system))
        except psutil.Error:
            continue  # gone meanwhile, which is a change too
    return tuple(sorted(found))


def cpu_use(pids: Iterable[int]) -> CpuUse:
    """Return what the main threads of these processes had of the CPUs; nothing where the kernel does not tell.

    Source: Linux, Documentation/scheduler/sched-stats.rst: nanoseconds run, nanoseconds waited for a CPU.
    """
    ran = waited = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/schedstat") as file:
                fields = file.read().split()
        except OSError:
            continue  # gone meanwhile, or a kernel without CONFIG_SCHED_INFO
        ran, waited = ran + int(fields[0]), waited + int(fields[1])
    return CpuUse(ran / 1e9, waited / 1e9)


def end(processes: Iterable[ProcessId], grace_seconds: float) -> Ended:
    """End processes: TERM, wait, KILL, wait again, and say which ones even that did not end.

    Works for any process, not only children; a reused pid is never signalled. Blocks at most `grace_seconds`
    plus two seconds.
    """
    wanted = list(dict.fromkeys(processes))
    remaining = {identity: process for identity in wanted if (process := _living(identity)) is not None}
    for process in remaining.values():
        _signal(process, kill=False)
    remaining = _wait(remaining, grace_seconds)
    for process in remaining.values():
        _signal(process, kill=True)
    remaining = _wait(remaining, _KILLED_SECONDS)
    return Ended(
        gone=tuple(identity for identity in wanted if identity not in remaining),
        unkillable=tuple(remaining),
    )


def _wait(remaining: dict[ProcessId, psutil.Process], timeout_seconds: float) -> dict[ProcessId, psutil.Process]:
    """Poll until all are gone or the time is over; return those still there."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        remaining = {identity: process for identity, process in remaining.items() if is_alive(identity)}
        if not remaining or time.monotonic() >= deadline:
            return remaining
        time.sleep(0.02)


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        return  # gone by itself


def _living(identity: ProcessId) -> psutil.Process | None:
    try:
        process = psutil.Process(identity.pid)
        same = abs(process.create_time() - identity.create_time) <= _SAME_SECONDS
        if same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return process
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return None
    return None
