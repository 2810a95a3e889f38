"""Fixtures for restores: an origin that was backed up, and a way to restore it inside this process."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from b2s.adapters import spool
from b2s.adapters.clock import Clock, SystemClock
from b2s.adapters.s3 import Bucket
from b2s.core.settings import LogSettings
from b2s.core.store_settings import S3Settings
from b2s.processes.child import ChildBoot
from b2s.processes.signals import StopRequest
from b2s.restore.compare import Depth
from b2s.restore.points import Wanted
from b2s.restore.retrieval import RetrievalPolicy
from b2s.restore.run import Keep, Restored, RestoreMeans, RestoreRequest, RestoreRun, RestoreSurroundings
from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import S3Server
from tests.parts.tree import change_tree, nasty_tree
from tests.restore.reference import ReferenceUploader

RETRIEVAL = RetrievalPolicy("Standard", 7, True, timedelta(minutes=5), timedelta(hours=72))


@dataclass
class Recorder:
    """A log that keeps its events."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    bound: dict[str, Any] = field(default_factory=dict)

    def bind(self, **fields: Any) -> Recorder:
        """Return a log that adds fields."""
        return Recorder(self.events, self.bound | fields)

    def _say(self, event: str, **fields: Any) -> None:
        self.events.append((event, self.bound | fields))

    debug = info = warning = error = _say

    def named(self, event: str) -> list[dict[str, Any]]:
        """Return the fields of all events of this name."""
        return [fields for name, fields in self.events if name == event]


@dataclass
class Restorer:
    """Restores from one bucket inside this process."""

    endpoint_url: str
    bucket: str
    prefix: str
    stop: StopRequest = field(default_factory=StopRequest)
    clock: Clock = field(default_factory=SystemClock)
    retrieval: RetrievalPolicy = RETRIEVAL
    concurrency: int = 2
    retry_for: timedelta = timedelta(seconds=20)
    log: Recorder = field(default_factory=Recorder)
    lines: list[str] = field(default_factory=list)
    children: list[tuple[int, str]] = field(default_factory=list)
    on_child: Callable[[int, str], None] = lambda pid, process: None

    def __call__(
        self,
        target: Path,
        *,
        source: str = "data",
        wanted: Wanted | None = None,
        keep: Keep = Keep.LAST,
        depth: Depth = Depth.FULL,
        sample_files: int = 1000,
    ) -> Restored:
        """Restore, and raise what it raises."""
        s3 = S3Settings(
            bucket=self.bucket,
            prefix=self.prefix,
            endpoint_url=self.endpoint_url,
            region="us-east-1",
            retry_for=self.retry_for,
        )
        run_id = secrets.token_hex(8)
        bucket = Bucket.connect(s3, stop=self.stop.check)
        surroundings = RestoreSurroundings(
            ChildBoot(run_id, "supervisor", LogSettings(level="warning", format="json")),
            self.stop,
            self.log,
            self._child,
            self.lines.append,
            self.clock,
        )
        request = RestoreRequest(source, target, wanted or Wanted(), keep, depth, sample_files)
        try:
            return RestoreRun(
                request, RestoreMeans(s3, self.retrieval, self.concurrency), bucket, surroundings
            ).execute()
        finally:
            bucket.close()
            assert not (spool.MEMORY_DIRECTORY / f"b2s-{run_id}").exists()
            assert not list(target.parent.glob(".b2s-staging-*"))

    def _child(self, pid: int, process: str) -> None:
        self.children.append((pid, process))
        self.on_child(pid, process)


@dataclass
class Origin:
    """A source on its own filesystem with snapshots that are backed up, `snapshots[i]` as `uploader.stored[i]`."""

    filesystem: LoopFilesystem
    live: Path
    uploader: ReferenceUploader
    snapshots: list[Path] = field(default_factory=list)

    def back_up(self, created_at: datetime | None = None) -> Path:
        """Snapshot the source and store it: the first time a full, then incrementals."""
        number = len(self.snapshots) + 1
        snapshot = self.filesystem.snapshot(self.live, f"snapshot-{number}")
        if self.snapshots:
            self.uploader.incremental(snapshot, self.snapshots[-1], created_at=created_at)
        else:
            self.uploader.full(snapshot, created_at=created_at)
        self.snapshots.append(snapshot)
        return snapshot

    def change_and_back_up(self, created_at: datetime | None = None) -> Path:
        """Change the source, then back it up."""
        change_tree(self.live, seed=len(self.snapshots))
        return self.back_up(created_at)

    def restorer(self, endpoint_url: str | None = None, **fields: Any) -> Restorer:
        """Return something that restores it, through a proxy if one is named."""
        return Restorer(
            endpoint_url or self.uploader.server.endpoint_url, self.uploader.bucket, self.uploader.prefix, **fields
        )


@pytest.fixture
def place_on(aws_env: Callable[[S3Server], None]) -> Callable[[S3Server], tuple[str, str]]:
    """Return a bucket of a server, and a prefix in it that nobody else uses: ``place_on(seaweed)``.

    One bucket for all tests: SeaweedFS gives every bucket volumes of its own and runs out of them.
    """

    def make(server: S3Server) -> tuple[str, str]:
        aws_env(server)
        bucket = "b2s-restore"
        exceptions = server.client().exceptions
        with contextlib.suppress(exceptions.BucketAlreadyOwnedByYou, exceptions.BucketAlreadyExists):
            server.make_bucket(bucket)
        return bucket, f"hosts/{secrets.token_hex(4)}"

    return make


@pytest.fixture
def make_origin(
    loopfs: Callable[..., LoopFilesystem], place_on: Callable[[S3Server], tuple[str, str]]
) -> Callable[..., Origin]:
    """Make an origin whose full backup lies on a server: ``make_origin(seaweed)``."""

    def make(server: S3Server, *, size_bytes: int = 12 << 20, **uploader: Any) -> Origin:
        bucket, prefix = place_on(server)
        filesystem = loopfs()
        live = filesystem.subvolume("live")
        nasty_tree(live, size_bytes=size_bytes)
        origin = Origin(filesystem, live, ReferenceUploader(server, bucket, prefix, **uploader))
        origin.back_up()
        return origin

    return make
