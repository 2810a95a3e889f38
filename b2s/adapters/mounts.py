"""What is mounted where, from /proc/self/mountinfo."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_MOUNTINFO = "/proc/self/mountinfo"
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo.

    Source: Linux man-pages, proc_pid_mountinfo(5) (read 2026-11).
    """

    mount_point: str
    root: str  # what of the filesystem is mounted; for btrfs the path of the subvolume from the top level
    filesystem_type: str
    options: frozenset[str]


def all_mounts() -> list[Mount]:
    """Return every mount this process sees, in the order they were made."""
    with open(_MOUNTINFO, "rb") as file:
        return [_parsed(line) for line in file.read().splitlines() if b" - " in line]


def btrfs_mounts() -> list[Mount]:
    """Return the mounts of btrfs filesystems."""
    return [mount for mount in all_mounts() if mount.filesystem_type == "btrfs"]


def mounts_inside(path: str) -> tuple[str, ...]:
    """Return the paths, relative to `path`, of what is mounted below it; no snapshot contains it."""
    prefix = os.path.realpath(path).rstrip("/") + "/"
    inside = {mount.mount_point.removeprefix(prefix) for mount in all_mounts() if mount.mount_point.startswith(prefix)}
    return tuple(sorted(inside - {""}))


def _parsed(line: bytes) -> Mount:
    before, _, after = line.partition(b" - ")
    fields = before.split(b" ")
    return Mount(
        mount_point=_unescaped(fields[4]),
        root=_unescaped(fields[3]),
        filesystem_type=_unescaped(after.split(b" ")[0]),
        options=frozenset(_unescaped(fields[5]).split(",")),
    )


def _unescaped(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
