"""What it was measured on: figures of different machines, kernels or versions cannot be compared."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from scripts.bench.tools import find

_VERSION_ARGUMENTS = {"aws": "--version", "rclone": "version", "s5cmd": "version", "restic": "version"}


def describe() -> dict[str, str]:
    """Return what matters for the figures, the load before the start among it."""
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "btrfs": _first_line(["btrfs", "--version"]),
    }
    for name, argument in _VERSION_ARGUMENTS.items():
        program = find(name)
        if program is not None:
            facts[name] = _first_line([program, argument])
    return facts


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    return (done.stdout or done.stderr).splitlines()[0] if done.stdout or done.stderr else "unknown"
