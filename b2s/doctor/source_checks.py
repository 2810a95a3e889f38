"""The sources: subvolumes that are there, what a backup of them will not contain, and where their snapshots go."""

from __future__ import annotations

import os
from collections.abc import Iterator

from b2s.adapters import btrfs
from b2s.adapters.mounts import mounts_inside
from b2s.core.limits import GIB
from b2s.core.model import SubvolumeFacts
from b2s.core.settings import Settings, SourceSettings
from b2s.core.text import escaped
from b2s.core.units import format_bytes
from b2s.doctor.finding import Finding, ok, problem, warning
from b2s.doctor.host_checks import check_directory, existing
from b2s.errors import NotASubvolume

SHOWN_MAX = 5
FREE_BYTES_MIN = (
    1 * GIB
)  # or a twentieth, if that is less: btrfs needs room for the metadata a snapshot makes its own, and gets slow without


def check_source(settings: Settings, source: SourceSettings) -> Iterator[Finding]:
    """Look at one source.

    Raises:
        BtrfsError: It is not there, or no subvolume.
    """
    facts = btrfs.subvolume_facts(source.path)
    filesystem = os.statvfs(source.path)
    free = filesystem.f_bavail * filesystem.f_frsize
    if filesystem.f_flag & os.ST_RDONLY:
        cure = "look at the kernel log, then mount it read-write: snapshots cannot be made there"
        yield problem("source", f"{source.name}: the filesystem of {source.path} is read-only", cure)
    elif free < min(FREE_BYTES_MIN, filesystem.f_blocks * filesystem.f_frsize // 20):
        detail = f"{source.name}: the filesystem of {source.path} has only {format_bytes(free)} free"
        yield warning("source", detail, "free some space: snapshots hold on to what is deleted meanwhile")
    else:
        yield ok("source", f"{source.name}: {source.path}, subvolume {facts.uuid}")
    yield from _not_contained(settings, source)
    yield from _snapshot_directory(settings, source, facts)


def _not_contained(settings: Settings, source: SourceSettings) -> Iterator[Finding]:
    """Look for what lies below a source and is in no snapshot of it."""
    own = os.path.realpath(settings.snapshots_of(source).base_dir)
    nested = [
        path
        for path in btrfs.nested_subvolumes(source.path)
        if not f"{os.path.realpath(os.path.join(source.path, path))}/".startswith(f"{own}/")
    ]
    # The snapshot directory may itself be a nested subvolume: that is what it is for.
    nested = [path for path in nested if os.path.realpath(os.path.join(source.path, path)) != own]
    if nested:
        cure = "list each that matters as a source of its own; an empty directory stands in its place in a restore"
        yield warning("nested_subvolumes", f"{source.name}: not part of its backups: {_shown(nested)}", cure)
    else:
        yield ok("nested_subvolumes", f"{source.name}: none")
    mounted = [path for path in mounts_inside(source.path) if path not in nested]
    if mounted:
        cure = "back up what is mounted there on its own, or know that it is not in the backup"
        yield warning("mounts_inside", f"{source.name}: not part of its backups: {_shown(mounted)}", cure)
    else:
        yield ok("mounts_inside", f"{source.name}: none")


def _snapshot_directory(settings: Settings, source: SourceSettings, facts: SubvolumeFacts) -> Iterator[Finding]:
    """See that snapshots can be made where they shall be."""
    base_dir = settings.snapshots_of(source).base_dir
    there = existing(base_dir)
    cure = "choose a directory on the source's filesystem (snapshots.base_dir)"
    try:
        same = btrfs.filesystem_uuid_of(str(there)) == facts.filesystem_uuid
    except NotASubvolume:
        same = False
    if not same:
        detail = f"{source.name}: {base_dir} is not on the filesystem of {source.path}"
        yield problem("snapshot_dir", detail, cure)
        return
    yield from check_directory("snapshot_dir", base_dir)


def _shown(paths: list[str]) -> str:
    shown = ", ".join(escaped(path) for path in paths[:SHOWN_MAX])
    more = len(paths) - SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown
