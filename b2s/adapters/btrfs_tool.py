"""Find the `btrfs` program and run its short commands, each within a time limit."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from b2s.errors import BtrfsError, BtrfsToolMissing

# cron's PATH is often only /usr/bin:/bin, and the tool lives in sbin on many systems.
_MORE_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")

COMMAND_SECONDS = 120.0  # a snapshot or a commit waits for the disk; a frozen filesystem must not hold us for ever
_KILLED_SECONDS = 2.0  # how long a killed tool may take to vanish before we leave it behind
_STDERR_BYTES = 4096

_left_behind: list[subprocess.Popen[bytes]] = []  # unkillable so far; fetched when they are gone after all


@dataclass(frozen=True, slots=True)
class Versions:
    """What stands between us and the disk."""

    kernel: str
    btrfs_progs: str


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """How one short command ended."""

    status: int  # exit status, negative for a signal
    stdout: str
    stderr: str  # the last 4 KiB


def find_btrfs() -> str:
    """Return the absolute path of `btrfs`: from PATH, else from the usual system directories.

    Raises:
        BtrfsToolMissing: It is in none of them.
    """
    path = os.environ.get("PATH", os.defpath)
    found = shutil.which("btrfs", path=os.pathsep.join([path, *_MORE_DIRECTORIES]))
    if found is None:
        raise BtrfsToolMissing("the btrfs program was not found in PATH, /usr/sbin or /sbin")
    return os.path.abspath(found)


def tool_environment() -> dict[str, str]:
    """Return the environment for the tool: ours, without secrets, its messages in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**kept, "LC_ALL": "C"}


def run_btrfs(*arguments: str, timeout_seconds: float = COMMAND_SECONDS) -> ToolAnswer:
    """Run one short `btrfs` command and return how it ended.

    Blocks at most `timeout_seconds` plus two seconds: a tool that even SIGKILL does not end (it waits in the
    kernel, on a frozen filesystem for instance) is left behind and named.

    Raises:
        BtrfsToolMissing: There is no `btrfs`.
        BtrfsError: It could not be started, or did not end in time.
    """
    argv = [find_btrfs(), *arguments]
    _left_behind[:] = [process for process in _left_behind if process.poll() is None]
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=tool_environment(),
            start_new_session=True,  # Ctrl-C reaches only the supervisor, which decides
        )
    except OSError as error:
        raise BtrfsError(f"{argv[0]} could not be started: {error.strerror}") from error
    try:
        stdout, stderr = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise _ended_late(process, arguments, timeout_seconds) from error
    except BaseException:
        process.kill()
        _close_pipes(process)
        raise
    return ToolAnswer(process.returncode, _text(stdout), _text(stderr[-_STDERR_BYTES:]))


def versions() -> Versions:
    """Return the versions of the kernel and of btrfs-progs."""
    words = run_btrfs("version", timeout_seconds=10).stdout.split()
    progs = next((word.removeprefix("v") for word in words if word.startswith("v")), "unknown")
    return Versions(kernel=os.uname().release, btrfs_progs=progs)


def _ended_late(process: subprocess.Popen[bytes], arguments: tuple[str, ...], timeout_seconds: float) -> BtrfsError:
    """Kill a tool that took too long and say whether it is really gone."""
    process.kill()
    _close_pipes(process)
    what = f"btrfs {' '.join(arguments[:2])} (pid {process.pid})"
    try:
        process.wait(_KILLED_SECONDS)
    except subprocess.TimeoutExpired:
        _left_behind.append(process)
        return BtrfsError(
            f"{what} did not end within {timeout_seconds:g} s and SIGKILL does not end it",
            hint="the filesystem may be frozen or its disk may not answer; look at the kernel log",
            pid=process.pid,
        )
    return BtrfsError(
        f"{what} did not end within {timeout_seconds:g} s and was killed",
        hint="the filesystem may be frozen or very busy; look at the kernel log",
        pid=process.pid,
    )


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace").strip()
