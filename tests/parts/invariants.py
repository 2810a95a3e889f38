"""What must hold after every test, whatever fault it injected."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psutil

from . import workspace

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Traces:
    """What a run could leave behind on this host, at one moment."""

    processes: frozenset[tuple[int, float]]  # pid, create time
    spools: frozenset[Path]  # /dev/shm/b2s-*


def observe() -> Traces:
    """Return what is there now; take it before the run, give it to `no_leftovers` after it."""
    processes = set()
    for process in workspace.own_processes():
        try:
            processes.add((process.pid, process.create_time()))
        except psutil.Error:
            continue
    return Traces(frozenset(processes), frozenset(_SHARED_MEMORY.glob("b2s-*")))


def no_leftovers(before: Traces, *gone: Path, seconds: float = 5.0) -> None:
    """Assert that no process and no spool in memory is new since `before`, and that the paths `gone` do not exist.

    Children of a killed supervisor need a moment to end: it waits up to `seconds`. A memory spool that a process of
    somebody else has open is theirs.
    """
    deadline = time.monotonic() + seconds
    while found := list(_leftovers(before, gone)):
        assert time.monotonic() < deadline, "left behind: " + "; ".join(found)
        time.sleep(0.05)


def _leftovers(before: Traces, gone: tuple[Path, ...]) -> Iterator[str]:
    now = observe()
    for pid, created in now.processes - before.processes:
        try:
            process = psutil.Process(pid)
            if process.create_time() == created:
                yield f"process {pid} {' '.join(process.cmdline())}"
        except psutil.Error:
            continue
    for spool in now.spools - before.spools:
        if spool.exists() and not _used_by_others(spool):
            yield f"spool {spool}"
    yield from (f"path {path}" for path in gone if path.exists() or path.is_symlink())


def _used_by_others(spool: Path) -> bool:
    ours = {os.getpid(), *(process.pid for process in workspace.own_processes())}
    prefix = f"{spool}/"
    for pid in set(psutil.pids()) - ours:
        try:
            if prefix in Path(f"/proc/{pid}/maps").read_text(errors="replace"):
                return True
            if any(os.readlink(fd).startswith(prefix) for fd in Path(f"/proc/{pid}/fd").iterdir()):
                return True
        except OSError:
            continue
    return False


def open_uploads(client: S3Client, bucket: str, prefix: str = "") -> list[tuple[str, str]]:
    """Return (key, upload id) of every multipart upload that is neither completed nor aborted."""
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    return [(upload["Key"], upload["UploadId"]) for page in pages for upload in page.get("Uploads", [])]


def object_keys(client: S3Client, bucket: str, prefix: str = "") -> list[str]:
    """Return every key in the bucket, sorted."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))


def assert_no_secret(secret: str, *places: str | bytes | Path) -> None:
    """Assert that `secret` occurs in none of the texts, files or directory trees, also not URL-encoded."""
    needles = {secret.encode(), quote(secret, safe="").encode()}
    for place in places:
        for name, content in _contents(place):
            assert not any(needle in content for needle in needles), f"the secret is in {name}"


def assert_not_in_process_list(secret: str) -> None:
    """Assert that no command line on this host shows `secret`."""
    for process in psutil.process_iter():
        try:
            assert secret not in " ".join(process.cmdline()), f"the secret is in the command line of pid {process.pid}"
        except psutil.Error:
            continue


def _contents(place: str | bytes | Path) -> Iterator[tuple[str, bytes]]:
    if isinstance(place, Path):
        files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        assert files or place.exists(), f"{place} does not exist"
        yield from ((str(path), path.read_bytes()) for path in files)
    else:
        content = place.encode(errors="surrogateescape") if isinstance(place, str) else place
        yield f"the text {content[:40]!r}…", content
