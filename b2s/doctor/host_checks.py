"""This host: kernel, tools, privileges, and the directories b2s keeps its own files in."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from b2s.adapters import btrfs
from b2s.core.limits import MIB
from b2s.core.settings import Settings
from b2s.core.units import format_bytes
from b2s.doctor.finding import Finding, ok, problem, warning

# Source: Linux 4.18, "btrfs: add unprivileged ioctl which returns subvolume information" (BTRFS_IOC_GET_SUBVOL_INFO).
KERNEL_MIN = (4, 18)
# Source: Linux 6.0 and btrfs-progs 6.0 release notes (send protocol 2); 6.2 is what b2s was tested with.
KERNEL_PROTOCOL_2 = (6, 0)
PROGS_PROTOCOL_2 = (6, 2)
FREE_BYTES_MIN = 64 * MIB  # the state of a 5 TiB backup with segments of 32 MiB takes about half of it


def check_tools(settings: Settings) -> Iterator[Finding]:
    """Look at kernel, btrfs-progs and setpriv."""
    versions = btrfs.versions()
    wants_2 = [source.name for source in settings.sources if settings.send_of(source).protocol == 2]
    kernel, progs = _numbers(versions.kernel), _numbers(versions.btrfs_progs)
    if kernel < KERNEL_MIN:
        yield problem("kernel", f"Linux {versions.kernel} cannot tell what b2s asks of it", "update to Linux 4.18")
    elif wants_2 and kernel < KERNEL_PROTOCOL_2:
        cure = "set send.protocol: 1, or update to Linux 6.0"
        yield problem("kernel", f"Linux {versions.kernel} does not know send protocol 2 ({', '.join(wants_2)})", cure)
    else:
        yield ok("kernel", f"Linux {versions.kernel}")
    if wants_2 and progs < PROGS_PROTOCOL_2:
        cure = "set send.protocol: 1, or update btrfs-progs to 6.2"
        detail = f"btrfs-progs {versions.btrfs_progs} does not know send protocol 2 well ({', '.join(wants_2)})"
        yield problem("btrfs_progs", detail, cure)
    else:
        yield ok("btrfs_progs", f"btrfs-progs {versions.btrfs_progs}, {btrfs.find_btrfs()}")
    if shutil.which("setpriv", path=os.environ.get("PATH", "") + ":/usr/bin:/bin") is None:
        detail = "without setpriv a killed b2s leaves `btrfs send` running until the next run ends it"
        yield warning("setpriv", detail, "install util-linux")


def check_root() -> Iterator[Finding]:
    """Look at who we are."""
    if os.geteuid() == 0:
        yield ok("root", "running as root")
    else:
        yield problem(
            "root", f"running as user {os.geteuid()}; `btrfs send` needs root", "run b2s, and this check, as root"
        )


def check_directories(settings: Settings) -> Iterator[Finding]:
    """Look at the directories of state and lock, and at those of the optional files."""
    yield from check_directory("state_dir", os.path.dirname(settings.state_path), room_bytes=FREE_BYTES_MIN)
    yield from check_directory("lock_dir", os.path.dirname(settings.lock_path))
    if settings.log.file is not None:
        yield from check_directory("log_dir", os.path.dirname(settings.log.file))
    if settings.metrics.textfile is not None:
        yield from check_directory("metrics_dir", os.path.dirname(settings.metrics.textfile))
        if not settings.metrics.textfile.endswith(".prom"):
            detail = f"node_exporter reads only files named *.prom, not {settings.metrics.textfile}"
            yield warning("metrics_dir", detail, "let metrics.textfile end in .prom")


def check_directory(check: str, path: str, *, room_bytes: int = 0) -> Iterator[Finding]:
    """Look at one directory that b2s writes to: whose it is, who else may write, whether it can be written.

    Args:
        check: The name of the finding.
        path: Made by a run where it does not exist; then what it would be made in is looked at.
        room_bytes: Free space below which there is a warning.
    """
    there = existing(path)
    facts = os.lstat(there)
    if stat.S_ISLNK(facts.st_mode):
        facts = os.stat(there)
    if not stat.S_ISDIR(facts.st_mode):
        yield problem(check, f"{there} is not a directory", "move it away, or choose another path")
        return
    others = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not facts.st_mode & stat.S_ISVTX
    if facts.st_uid not in (0, os.geteuid()) or others:
        detail = f"{there} belongs to user {facts.st_uid}, mode {stat.S_IMODE(facts.st_mode):04o}: others can write"
        yield problem(check, detail, f"chown root: {there} && chmod go-w {there}")
        return
    filesystem = os.statvfs(there)
    if filesystem.f_flag & os.ST_RDONLY or not os.access(there, os.W_OK):
        yield problem(check, f"{there} cannot be written", "mount it read-write, or choose another path")
        return
    free = filesystem.f_bavail * filesystem.f_frsize
    if free < room_bytes:
        yield warning(check, f"{there} has only {format_bytes(free)} free", "free some space there")
        return
    if str(there) == path:
        yield ok(check, f"{path}, mode {stat.S_IMODE(facts.st_mode):04o}")
    else:
        yield ok(check, f"{path}, to be made by the first run")


def existing(path: str) -> Path:
    """Return the path, or its nearest parent that exists."""
    found = Path(path)
    while not os.path.lexists(found):
        found = found.parent
    return found


def _numbers(version: str) -> tuple[int, int]:
    """Return major and minor of a version; one that makes no sense counts as new."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (999, 0)
