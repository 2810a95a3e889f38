"""Directories and processes that can be told to be ours, also after the test run that made them was killed.

A directory's name carries pid and start time of the pytest process that made it; whatever such a process leaves
behind is removed by the next test run, and only then. Every process started below carries `MARKER` in its environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

MARKER = "B2S_TEST_RUN"
_NAME = re.compile(r"test-b2s-(\d+)-(\d+)-")
_MEMORY = Path("/dev/shm")
_ROOM_WANTED = 6 * 1024**3


def _start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def tag() -> str:
    """Return the name of this test run: pid and start time, never shared by two runs."""
    return f"{os.getpid()}-{_start_ticks(os.getpid())}"


def bases() -> list[Path]:
    """Return where directories may be made, the preferred one first.

    That is `$B2S_TEST_DIR`, or memory: the suite makes hundreds of filesystems and flushes them all the time. Where
    memory is short (or the test is large: `scripts/test --long`), a disk has to do.
    """
    chosen = os.environ.get("B2S_TEST_DIR")
    places = [Path(chosen)] if chosen else [_MEMORY] if _room(_MEMORY) >= _ROOM_WANTED else []
    return [*places, Path(tempfile.gettempdir())]


def _room(directory: Path) -> int:
    try:
        facts = os.statvfs(directory)
    except OSError:
        return 0
    return facts.f_bavail * facts.f_frsize


def make_directory(what: str) -> Path:
    """Create a private directory that belongs to this test run; the caller removes it."""
    # Not named like a spool: what is tested here removes abandoned spools from memory.
    return Path(tempfile.mkdtemp(prefix=f"test-b2s-{tag()}-{what}-", dir=bases()[0]))


def environment(**extra: str) -> dict[str, str]:
    """Return the environment for a server: ours without credentials of any kind, marked."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "WEED_", "RCLONE_"))}
    return {**kept, MARKER: tag(), **extra}


def own_processes() -> list[psutil.Process]:
    """Return every live process this test run started: descendants, and orphans that carry our marker."""
    descendants = {child.pid for child in psutil.Process().children(recursive=True)}
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            ours = process.pid in descendants or process.environ().get(MARKER) == tag()
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def poll(ready: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Wait until `ready()` is true.

    Raises:
        TimeoutError: naming `what`, after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def mounts_below(directory: Path) -> list[Path]:
    """Return the mount points at or below `directory`, the deepest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        escaped = line.split()[4]
        point = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), escaped))
        if point.is_relative_to(directory):
            found.append(point)
    return found[::-1]


def loops_backed_by(directory: Path) -> list[Path]:
    """Return the loop devices whose image lies below `directory`."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            image = backing.read_text().strip().removesuffix(" (deleted)")
        except OSError:
            continue
        if Path(image).is_relative_to(directory):
            found.append(Path("/dev") / backing.parts[3])
    return found


def remove(directory: Path) -> None:
    """Unmount what is mounted below `directory`, detach its loop devices, and delete it."""
    for point in mounts_below(directory):
        if subprocess.run(["umount", point], capture_output=True, check=False).returncode != 0:
            subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
    for device in loops_backed_by(directory):
        subprocess.run(["losetup", "--detach", device], capture_output=True, check=False)
    shutil.rmtree(directory, ignore_errors=True)


def remove_leftovers(*, of_this_run: bool = False) -> None:
    """Remove what test runs that are gone left behind; with `of_this_run`, what this one did."""
    found = {directory for base in (_MEMORY, *bases()) for directory in base.glob("test-b2s-*")}
    for directory in found:
        match = _NAME.match(directory.name)
        if match is None:
            continue
        alive = _start_ticks(int(match[1])) == int(match[2])
        ours = f"{match[1]}-{match[2]}" == tag()
        if not alive or (ours and of_this_run):
            remove(directory)
