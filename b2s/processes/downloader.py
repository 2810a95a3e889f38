"""A downloader process: fetches one segment at a time into its slot and reports it only when its hash matched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from b2s.adapters.s3 import Bucket
from b2s.adapters.spool import Spool
from b2s.core.messages import FetchSegment, SegmentFetched, TaskRetried
from b2s.core.store_settings import S3Settings
from b2s.errors import B2sError, ChunkDamaged, ChunkMissing, ObjectArchived, ObjectChanged, ObjectMissing
from b2s.processes.child import ChildBoot, child_process, serve
from b2s.processes.uploader import SignsOfLife

DOWNLOADS_PER_SEGMENT_MAX = 5  # a bit flipped in flight heals; what is wrong five times is stored wrong


def main(
    boot: ChildBoot,
    settings: S3Settings,
    spool_path: Path,
    slot_bytes: int,
    tasks: Queue[Any],
    replies: Connection,
) -> None:
    """Run tasks until `Stop`; a segment that cannot be had is reported and ends nothing here."""

    def retried(error: B2sError, attempt: int, wait_seconds: float) -> None:
        replies.send(TaskRetried(error.to_wire(), attempt, wait_seconds))

    with child_process(boot, replies):
        spool = Spool.attach(spool_path, slot_bytes, writable=True)
        signs = SignsOfLife(replies)
        bucket = Bucket.connect(settings, stop=signs.alive, on_bytes=signs, on_retry=retried, downloads=True)
        serve(tasks, replies, lambda task: signs.of(lambda: _do(task, bucket, spool, retried)))


def _do(task: object, bucket: Bucket, spool: Spool, retried: Callable[[B2sError, int, float], None]) -> SegmentFetched:
    if not isinstance(task, FetchSegment):
        raise TypeError(f"a downloader cannot do {task!r}")
    fetch(task, bucket, spool, retried)
    return SegmentFetched(task.segment_number, task.slot)


def fetch(task: FetchSegment, bucket: Bucket, spool: Spool, retried: Callable[[B2sError, int, float], None]) -> None:
    """Fill the task's slot, which the supervisor has given its room, with its segment.

    Args:
        task: What to fetch.
        bucket: This process's connection.
        spool: Where the slot lies.
        retried: Told of every download whose hash was wrong and that is done again.

    Raises:
        ChunkDamaged: The hash is wrong however often it is downloaded, or the object was replaced meanwhile.
        ChunkMissing: The object is gone.
        ObjectArchived: It lies in an archive class; its temporary copy has expired.
    """
    buffer = spool.slot(task.slot)[: task.bytes]
    where = f"segment at byte {task.offset} of {task.key}"
    context: dict[str, Any] = {"key": task.key, "offset": task.offset, "finding": "segment_checksum"}
    for attempt in range(1, DOWNLOADS_PER_SEGMENT_MAX + 1):
        digest = hashlib.sha256()
        try:
            bucket.get_range(task.key, task.etag, task.offset, buffer, digest.update)
        except ObjectChanged as error:
            raise ChunkDamaged(f"{task.key} was replaced while it was read", **context) from error
        except ObjectMissing as error:
            raise ChunkMissing(
                f"{task.key} is gone; it was there a moment ago", key=task.key, finding="chunk_missing"
            ) from error
        except ObjectArchived as error:
            raise ObjectArchived(
                f"{task.key} lies in an archive class and cannot be read now",
                hint="its temporary copy has expired or was never asked for; run `b2s restore` again to retrieve it",
                key=task.key,
            ) from error
        if digest.digest() == task.sha256:
            return
        damage = ChunkDamaged(f"the {where} has another SHA-256 than its manifest says", **context)
        if attempt == DOWNLOADS_PER_SEGMENT_MAX:
            damage.hint = (
                "the stored chunk is damaged; nothing of this segment was restored. Choose a backup of another chain"
            )
            raise damage
        retried(damage, attempt, 0.0)
