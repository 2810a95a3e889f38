"""Stands in for an uploader under `--no-s3`: takes the same tasks, hashes the segments and sends nothing."""

from __future__ import annotations

import hashlib
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from b2s.adapters.spool import Spool
from b2s.core.messages import (
    ChunkOpened,
    ChunkStored,
    CompleteChunk,
    OpenChunk,
    SegmentStored,
    StoreSegment,
)
from b2s.core.model import Receipt, Sha256, StoreFacts
from b2s.core.sizing import composite_sha256
from b2s.core.store_settings import S3Settings
from b2s.processes.child import ChildBoot, child_process, serve


def main(
    boot: ChildBoot,
    settings: S3Settings,
    facts: StoreFacts,
    spool_path: Path,
    slot_bytes: int,
    tasks: Queue[Any],
    replies: Connection,
) -> None:
    """Answer tasks until told to stop."""
    with child_process(boot, replies):
        spool = Spool.attach(spool_path, slot_bytes, writable=False)
        serve(tasks, replies, lambda task: _measured(task, spool))


def _measured(task: object, spool: Spool) -> object:
    match task:
        case OpenChunk(chunk_index):
            return ChunkOpened(chunk_index, "measured")
        case StoreSegment():
            sha256 = task.sha256 or Sha256(hashlib.sha256(spool.slot(task.slot)[: task.bytes]).digest())
            receipt = Receipt(task.segment_index + 1, task.bytes, sha256, "")
            return SegmentStored(task.chunk_index, task.segment_index, receipt, reused=False)
        case CompleteChunk():
            size = sum(receipt.bytes for receipt in task.receipts)
            composite = composite_sha256(receipt.sha256 for receipt in task.receipts)
            return ChunkStored(task.chunk_index, size, "", composite)
    raise TypeError(f"a measurer cannot do {task!r}")
