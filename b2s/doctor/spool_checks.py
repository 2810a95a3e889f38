"""The spool: whether segments in flight fit where they shall lie."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from b2s.adapters import memory
from b2s.adapters.mounts import all_mounts
from b2s.adapters.spool import MEMORY_DIRECTORY
from b2s.core.settings import Settings
from b2s.core.sizing import memory_bytes_max, spool_slots
from b2s.core.units import format_bytes
from b2s.doctor.finding import Finding, ok, problem, warning
from b2s.doctor.host_checks import existing

MEMORY_SHARE_MAX = 0.5  # of what is available: the rest is for everybody else on this host


def check_spool(settings: Settings) -> Iterator[Finding]:
    """Look at room, place and effect of the spool."""
    on_disk = settings.spool.enabled
    segment = settings.s3.segment_size
    plan = spool_slots(
        on_disk=on_disk,
        size_bytes=settings.spool.size,
        segment_size_bytes=segment,
        concurrency=settings.s3.concurrency,
    )
    directory = existing(settings.spool.dir) if on_disk else MEMORY_DIRECTORY
    yield from _place(str(directory), settings)
    filesystem = os.statvfs(directory)
    free = filesystem.f_bavail * filesystem.f_frsize
    lower = "lower s3.segment_size or s3.concurrency" + (" or spool.size" if on_disk else "")
    enlarge = "free space there" if on_disk else "enlarge it (mount -o remount,size=... /dev/shm), or enable the spool"
    need = f"up to {format_bytes(plan.budget_bytes)} for {plan.slots} segments of {format_bytes(segment)}"
    if free < segment:
        detail = f"{directory} has {format_bytes(free)} free, not enough for one segment of {format_bytes(segment)}"
        yield problem("spool", detail, f"{enlarge}, or {lower}")
    elif free < plan.budget_bytes:
        detail = f"{directory} has {format_bytes(free)} free; a backup takes {need}: it will run with fewer at once"
        yield warning("spool", detail, f"{enlarge}, or {lower}")
    else:
        yield ok("spool", f"{directory} has {format_bytes(free)} free; a backup takes {need}")
    if plan.effective_concurrency < settings.s3.concurrency:
        detail = f"spool.size leaves room for {plan.effective_concurrency} of {settings.s3.concurrency} uploaders"
        yield warning("spool", detail, "raise spool.size, or lower s3.segment_size")
    most = memory_bytes_max(plan, on_disk=on_disk, segments=0)
    available = memory.available_bytes()
    if most > available * MEMORY_SHARE_MAX:
        detail = f"a backup takes up to {format_bytes(most)} of memory, {format_bytes(available)} are available"
        yield warning("memory", detail, f"{lower}; a spool on disk takes less memory")
    else:
        yield ok("memory", f"a backup takes up to {format_bytes(most)}, {format_bytes(available)} are available")


def _place(directory: str, settings: Settings) -> Iterator[Finding]:
    """Look at a spool directory on disk: safe to use, and on a disk."""
    if not settings.spool.enabled:
        return
    facts = os.lstat(directory)
    if not stat.S_ISDIR(facts.st_mode):
        yield problem("spool", f"{directory} is a symbolic link or no directory", "name a real directory in spool.dir")
    elif facts.st_mode & stat.S_IWOTH and not facts.st_mode & stat.S_ISVTX:
        yield problem("spool", f"{directory} is writable by others", f"chmod 0700 {directory}")
    if filesystem_type(directory) in ("tmpfs", "ramfs"):
        detail = (
            f"{directory} is in memory (tmpfs), and the spool takes up to {format_bytes(settings.spool.size)} of it"
        )
        yield warning("spool", detail, "choose a spool.dir on a disk, or set spool.enabled: false")
    for source in settings.sources:
        inside = os.path.realpath(settings.spool.dir).startswith(f"{os.path.realpath(source.path).rstrip('/')}/")
        if inside and os.path.exists(source.path) and os.stat(directory).st_dev == os.stat(source.path).st_dev:
            detail = f"{settings.spool.dir} is part of source {source.name}: its snapshots would hold spool files"
            yield warning("spool", detail, "choose a spool.dir outside, or in a subvolume of its own")


def filesystem_type(path: str) -> str:
    """Return the type of the filesystem a path lies on."""
    real = os.path.realpath(path)
    best = ("", "")
    for mount in all_mounts():
        point = mount.mount_point.rstrip("/")
        if (real == point or real.startswith(f"{point}/")) and len(point) >= len(best[0]):
            best = (point, mount.filesystem_type)
    return best[1]
