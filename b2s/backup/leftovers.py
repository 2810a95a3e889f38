"""What dead runs left behind, found and removed: processes, spools, multipart uploads. Only ours, never a guess."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from b2s.adapters import children, spool
from b2s.adapters.state import State
from b2s.core import events
from b2s.core.layout import Layout
from b2s.core.settings import Settings
from b2s.errors import SpoolRefused

if TYPE_CHECKING:
    from b2s.adapters.s3 import Bucket

END_GRACE_SECONDS = 2.0


def remove_processes(state: State, run_id: str, log: Any) -> None:
    """End the recorded children of earlier runs that still live; pid and create time must both match.

    One that does not end is named, and stays recorded for the next run.
    """
    recorded = [entry for entry in state.children() if entry[0] != run_id]
    living = set(children.leftovers(process for _, process, _ in recorded))
    unkillable = children.end(living, END_GRACE_SECONDS).unkillable if living else ()
    for dead_run_id, process, role in recorded:
        facts = {"orphan_pid": process.pid, "role": role, "of_run": dead_run_id}
        if process in unkillable:
            log.error(
                events.ORPHAN_REMOVED, what="nothing", error="the process does not end, not even by SIGKILL", **facts
            )
        elif process in living:
            log.warning(events.ORPHAN_REMOVED, what="process", **facts)
    stuck = {dead_run_id for dead_run_id, process, _ in recorded if process in unkillable}
    for dead_run_id in {dead_run_id for dead_run_id, _, _ in recorded} - stuck:
        state.forget_children(dead_run_id)


def forget_processes(state: State, run_id: str) -> None:
    """Forget the children of a run that ends now, unless one of them did not: the next run is to know of it."""
    if not children.leftovers(process for recorded, process, _ in state.children() if recorded == run_id):
        state.forget_children(run_id)


def remove_spools(settings: Settings, log: Any) -> None:
    """Remove spool directories whose owner is gone; where one cannot look, this run may still not need to."""
    for parent in (spool.MEMORY_DIRECTORY, Path(settings.spool.dir)):
        try:
            removed = spool.sweep(parent, children.owner_lives)
        except SpoolRefused as error:
            log.warning(events.ORPHAN_KEPT, path=str(parent), error=error.message)
            continue
        for path in removed:
            log.warning(events.ORPHAN_REMOVED, what="spool", path=str(path))


def abort_uploads(bucket: Bucket, layout: Layout, state: State, log: Any, *, stored: str | None = None) -> None:
    """Abort every multipart upload under the source that no unfinished backup of ours will go on with.

    Once the source name is known to be ours, everything under its prefix is (SPEC section 9, "Whose chain").

    Args:
        stored: The backup whose chunks are all stored, so that whatever is still open of it belongs to a longer
            stream that an earlier run saw.
    """
    unfinished = [progress for progress in state.unfinished() if progress.intent.backup_id != stored]
    live = {chunk.upload_id for progress in unfinished for chunk in progress.chunks.values()}
    for upload in bucket.list_uploads(layout.source_prefix):
        if upload.upload_id not in live:
            bucket.abort_upload(upload.key, upload.upload_id)
            log.warning(events.ORPHAN_REMOVED, what="multipart upload", key=upload.key)
