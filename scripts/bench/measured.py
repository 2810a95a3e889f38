"""Run one pipeline and say what it cost: a process of its own per measurement, so that nothing else is counted.

    python -m scripts.bench.measured SPEC-AS-JSON

CPU time is that of whole process trees, orphans included: this process adopts them (PR_SET_CHILD_SUBREAPER) and
asks the kernel what each one used. Memory is only sampled when asked for, because sampling costs time.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # Source: prctl(2), linux/prctl.h
SAMPLE_SECONDS = 0.1
STDERR_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands joined by pipes; one of them is the tool that is measured."""

    stages: list[list[str]]
    tool: int = 0  # which stage
    stdin: str | None = None  # a file; None: nothing
    stdout: str | None = None  # a file; None: /dev/null
    environment: dict[str, str] = field(default_factory=dict)  # added to ours
    btrfs_times: str | None = None  # where the stand-in for btrfs writes what btrfs below the tool used
    sample_memory: bool = False


@dataclass(slots=True)
class Cost:
    """What a pipeline cost."""

    seconds: float = 0.0
    tool_cpu_seconds: float = 0.0  # user and system, the whole tree without btrfs
    btrfs_cpu_seconds: float = 0.0
    other_cpu_seconds: float = 0.0  # of the other stages
    peak_pss_bytes: int = 0
    statuses: list[int] = field(default_factory=list)
    stderr: str = ""


def run(pipeline: Pipeline, *, sample_memory: bool = False, timeout_seconds: float = 3600.0) -> Cost:
    """Run a pipeline in a process of its own.

    Raises:
        RuntimeError: One of its commands failed.
    """
    argv = [
        sys.executable,
        "-m",
        "scripts.bench.measured",
        json.dumps(asdict(replace(pipeline, sample_memory=sample_memory))),
    ]
    measuring = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        stdout, stderr = measuring.communicate(timeout=timeout_seconds)
    except BaseException:
        os.killpg(measuring.pid, signal.SIGKILL)  # the tool too: it holds the filesystem that is to be unmounted
        measuring.communicate()
        raise
    if measuring.returncode:
        raise RuntimeError(stderr[-STDERR_BYTES:])
    cost = Cost(**json.loads(stdout))
    if any(cost.statuses):
        raise RuntimeError(f"{pipeline.stages[pipeline.tool][:6]} ended with {cost.statuses}: {cost.stderr}")
    return cost


def _measure(pipeline: Pipeline) -> Cost:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    environment = {**os.environ, **pipeline.environment}
    cost = Cost(statuses=[0] * len(pipeline.stages))
    with ExitStack() as stack:
        errors = stack.enter_context(open(os.memfd_create("stderr"), "w+b"))
        reading = stack.enter_context(open(pipeline.stdin or os.devnull, "rb"))
        writing = stack.enter_context(open(pipeline.stdout or os.devnull, "wb"))
        started = time.monotonic()
        pids: dict[int, int] = {}
        source: int = reading.fileno()
        for index, argv in enumerate(pipeline.stages):
            last = index == len(pipeline.stages) - 1
            reader, target = (-1, writing.fileno()) if last else os.pipe()
            process = subprocess.Popen(argv, stdin=source, stdout=target, stderr=errors, env=environment)
            pids[process.pid] = index
            if index > 0:
                os.close(source)
            if not last:
                os.close(target)
            source = reader
        _collect(pids, pipeline, cost)
        cost.seconds = time.monotonic() - started
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - STDERR_BYTES))
        cost.stderr = errors.read().decode(errors="replace")
    if pipeline.btrfs_times and os.path.exists(pipeline.btrfs_times):
        cost.btrfs_cpu_seconds = _shell_times(Path(pipeline.btrfs_times).read_text())
        cost.tool_cpu_seconds -= cost.btrfs_cpu_seconds
    return cost


def _collect(pids: dict[int, int], pipeline: Pipeline, cost: Cost) -> None:
    """Wait for all stages and everything they left behind; add up what they used."""
    while True:
        flags = os.WNOHANG if pipeline.sample_memory else 0
        try:
            pid, status, usage = os.wait4(-1, flags)
        except ChildProcessError:
            return
        if pid == 0:
            cost.peak_pss_bytes = max(cost.peak_pss_bytes, _pss_bytes(pids, pipeline.tool))
            time.sleep(SAMPLE_SECONDS)
            continue
        index = pids.get(pid, pipeline.tool)  # an orphan is the tool's
        if pid in pids:
            cost.statuses[index] = os.waitstatus_to_exitcode(status)
        _add(usage, cost, is_tool=index == pipeline.tool)


def _add(usage: resource.struct_rusage, cost: Cost, *, is_tool: bool) -> None:
    seconds = usage.ru_utime + usage.ru_stime
    if is_tool:
        cost.tool_cpu_seconds += seconds
    else:
        cost.other_cpu_seconds += seconds


def _shell_times(text: str) -> float:
    """Return the seconds of the shell's children: every second line of what its `times` prints, like 0m1.23s."""
    words = [word for line in text.splitlines()[1::2] for word in line.split()]
    return sum(60 * float(word.partition("m")[0]) + float(word.partition("m")[2].rstrip("s")) for word in words)


def _pss_bytes(pids: dict[int, int], tool: int) -> int:
    """Return what the tool's processes occupy now, btrfs not counted; shared pages once."""
    others = {pid for pid, index in pids.items() if index != tool}
    total = 0
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        try:
            lists = [each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/children")]
            waiting += [int(child) for child in " ".join(lists).split() if int(child) not in others]
            if pid == os.getpid() or Path(f"/proc/{pid}/comm").read_text().strip() == "btrfs":
                continue
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def main() -> None:
    """Measure what the command line describes."""
    print(json.dumps(asdict(_measure(Pipeline(**json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    main()
