"""Read a backup's data and have `btrfs receive --dump` read it as a stream; nothing is written anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from b2s.adapters import btrfs, children, spool
from b2s.core.fetch_board import segments_of
from b2s.core.manifest import Manifest
from b2s.core.progress import NoProgress, ProgressSink, ending
from b2s.core.store_settings import S3Settings
from b2s.processes.child import ChildBoot
from b2s.processes.signals import StopRequest
from b2s.restore.pipeline import DownloadPlan, StreamDownloads
from b2s.restore.points import PresentChunk
from b2s.restore.run import check_opening


@dataclass(frozen=True, slots=True)
class StreamDump:
    """Downloads, hashes and dumps one backup at a time."""

    s3: S3Settings
    concurrency: int
    boot: ChildBoot
    stop: StopRequest
    log: Any
    on_child: Callable[[int, str], None]
    watch: ProgressSink = field(default_factory=NoProgress)

    def __call__(self, manifest: Manifest, chunks: Sequence[PresentChunk]) -> None:
        """Check all segments and the stream they make.

        Raises:
            ChunkDamaged: A segment has another hash, or the stream is of another snapshot.
            ReceiveFailed: `btrfs receive --dump` does not accept the stream.
            ObjectArchived: A chunk cannot be read before it is retrieved.
        """
        plan = DownloadPlan.of([manifest], self.s3, self.concurrency, spool.MEMORY_DIRECTORY)
        objects = [(chunk.key, chunk.facts.etag) for chunk in chunks]
        downloads = StreamDownloads(
            plan, self.boot, children.owner_label(self.boot.run_id), self.stop, self.log, self.on_child, self.watch
        )
        self.watch.begin(manifest.source.name, f"verify {manifest.backup_id}", manifest.stream.bytes)
        with ending(self.watch), downloads:
            downloads.feed(
                segments_of(manifest, objects),
                [btrfs.find_btrfs(), "receive", "--dump"],
                inspect=lambda first_segment: check_opening(manifest, first_segment),
            )
