"""One backup of one source: snapshot, journal, send and upload, commit, forget what is no longer needed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from b2s.adapters import btrfs, children
from b2s.adapters.spool import MEMORY_DIRECTORY
from b2s.backup import leftovers, retention
from b2s.backup.commit import commit, manifest_of
from b2s.backup.estimate import estimate_stream
from b2s.backup.manifests import ManifestCache
from b2s.backup.resume import stored_so_far
from b2s.backup.run_parts import RunParts
from b2s.backup.stream_upload import StreamPlan, StreamUpload, UploadObserver, UploadResult
from b2s.core import events
from b2s.core.board import ResumedChunk, UploadBoard
from b2s.core.journal import BackupIntent, BackupProgress, StoredChunk
from b2s.core.layout import Layout, new_backup_id
from b2s.core.manifest import Manifest, SnapshotIdentity, SourceIdentity
from b2s.core.manifest_codec import sha256_of
from b2s.core.messages import ChunkStored
from b2s.core.model import ActionKind, Reason, Receipt, StoreFacts
from b2s.core.plan import Decision
from b2s.core.progress import NoProgress, ending
from b2s.core.send_parent import doubt_about
from b2s.core.settings import SourceSettings
from b2s.core.sizing import Sizes, spool_slots
from b2s.core.store_settings import S3Settings
from b2s.core.stream_opening import parse_opening
from b2s.core.units import format_rate
from b2s.errors import (
    BtrfsError,
    ChunkDamaged,
    NotASubvolume,
    SendFailed,
    SourceMissing,
    StreamChanged,
    UploadGone,
)
from b2s.processes import measurer, uploader
from b2s.processes.child import ChildBoot

UPLOADS_BEGUN_AGAIN_MAX = 3  # in one run, when something outside aborts them


class SourceBackup:
    """The steps of one source; `begin` and `finish` are apart: all snapshots are taken before anything is sent."""

    def __init__(self, parts: RunParts, source: SourceSettings) -> None:
        self.parts = parts
        self.source = source
        self.layout = Layout(parts.settings.s3.prefix, source.name)
        self.log = parts.log.bind(source=source.name)

    def begin(self, decision: Decision) -> BackupIntent:
        """Take the snapshot and write down what is going to be done with it."""
        intent = self._snapshot(decision)
        self.parts.state.begin(intent)
        self.parts.state.record_snapshot(self.source.name, intent.snapshot.path, intent.snapshot.uuid, intent.backup_id)
        return intent

    def _snapshot(self, decision: Decision) -> BackupIntent:
        """Take the snapshot; it is announced in the state, but nothing says yet that it is to be backed up."""
        assert decision.kind is not None
        assert decision.sequence is not None
        subvolume = btrfs.subvolume_facts(self.source.path)
        settings = self.parts.settings
        created_at = self.parts.clock.now().replace(microsecond=0)
        backup_id = new_backup_id(created_at, decision.kind, secrets.token_hex(4))
        name = f"{self.source.name}.{backup_id}"
        base_dir = Path(settings.snapshots_of(self.source).base_dir)
        _make_directory(base_dir)
        # Announced before it exists: a run that dies in between leaves nothing that the next one cannot name.
        self.parts.state.record_snapshot(self.source.name, str(base_dir / name), None, backup_id)
        with self.parts.stop.interrupting():  # it waits for the disk
            snapshot = btrfs.create_snapshot(self.source.path, str(base_dir / name))
        self.log.info(events.SNAPSHOT_CREATED, path=snapshot.path, uuid=snapshot.uuid)
        nested = btrfs.nested_subvolumes(subvolume.path)
        if nested:  # in the snapshot they are empty directories
            self.log.warning(events.NESTED_ABSENT, backup_id=backup_id, nested_subvolumes=len(nested), first=nested[0])
        send = settings.send_of(self.source)
        return BackupIntent(
            backup_id=backup_id,
            sequence=decision.sequence,
            kind=decision.kind,
            reason=decision.reason,
            store=self.parts.store,
            created_at=created_at,
            source=SourceIdentity(self.source.name, self.source.path, subvolume.uuid, subvolume.filesystem_uuid),
            snapshot=SnapshotIdentity(name, snapshot.path, snapshot.uuid, snapshot.ctransid, nested),
            previous=decision.previous,
            send_parent=decision.send_parent,
            send_parent_path=decision.send_parent_path,
            protocol=send.protocol,
            compressed_data=send.compressed_data,
            segment_size_bytes=settings.s3.segment_size,
            chunk_size_bytes=settings.s3.chunk_size,
            storage_class=settings.s3.storage_class.chunks,
            sse=settings.s3.effective_sse,
        )

    def finish(self, intent: BackupIntent, facts: StoreFacts, *, resuming: bool = False) -> Manifest:
        """Send, upload and commit a begun backup, from wherever it got to; return what was committed.

        Args:
            resuming: An earlier run began it.

        Raises:
            StreamChanged: What is stored of it does not fit the stream any more, or its send parent was changed.
            B2sError: Anything else that ended it; it can be resumed.
        """
        sent: list[SnapshotIdentity] = []
        attempt = 0
        while True:
            progress = self.parts.state.progress(intent.backup_id)
            resumed = self._resumed(progress, intent.backup_id, say=resuming or attempt > 0)
            try:
                with self._uploaded(
                    intent,
                    resumed,
                    facts,
                    _Journal(self, intent),
                    inspect=lambda beginning: sent.append(self._as_sent(intent, beginning)),
                ) as result:
                    return self._commit(replace(intent, snapshot=sent[-1]), result)
            except UploadGone as error:
                attempt += 1
                if attempt == UPLOADS_BEGUN_AGAIN_MAX:
                    raise
                self._begin_again(intent, error)
                self.log.warning(events.PART_RETRIED, error=error.message, attempt=attempt, wait_seconds=0)

    def _commit(self, intent: BackupIntent, result: UploadResult) -> Manifest:
        manifest = manifest_of(intent, result.chunks, result.stream_bytes, self.parts.host, self.parts.clock.now())
        with self.parts.stop.interrupting():
            # Uploads whose creation was done but never answered; once committed nothing is due, and nobody would look.
            leftovers.abort_uploads(self.parts.bucket, self.layout, self.parts.state, self.log, stored=intent.backup_id)
            body = commit(self.parts.bucket, self.layout, manifest)
        ManifestCache(self.parts.state, self.parts.store, self.source.name).keep_committed(manifest, sha256_of(body))
        self.log.info(
            events.MANIFEST_COMMITTED,
            backup_id=intent.backup_id,
            sequence=intent.sequence,
            key=self.layout.manifest_key(intent.sequence),
        )
        self.parts.state.finish(intent.backup_id)
        self._report(intent, result)
        return manifest

    def _as_sent(self, intent: BackupIntent, beginning: bytes) -> SnapshotIdentity:
        """Return the snapshot as its stream names it, which a restore compares with the manifest.

        Days may lie between decision and send, while other sources are sent. Both snapshots stay as they are from
        here on: the kernel lets nobody change what is being sent.

        Raises:
            SendFailed: This is no such stream.
            StreamChanged: The send parent is not what it was, so the stream must not hang from it.
        """
        try:
            opening = parse_opening(memoryview(beginning))
        except ChunkDamaged as error:
            raise SendFailed(f"btrfs send makes no valid stream: {error.message}") from error
        if opening.kind is not intent.kind:
            raise SendFailed(f"btrfs send makes the stream of a {opening.kind.value}, not of a {intent.kind.value}")
        if intent.send_parent is not None:
            doubt = self._doubt_about_send_parent(intent.send_parent.sequence, intent.send_parent_path or "")
            if doubt is not None:
                raise StreamChanged(f"the send parent was changed since it was chosen: {doubt}")
        return replace(intent.snapshot, ctransid=opening.ctransid)

    def _doubt_about_send_parent(self, sequence: int, path: str) -> str | None:
        """Return what is wrong with the send parent now; None when it is what its manifest says."""
        known = ManifestCache(self.parts.state, self.parts.store, self.source.name).get(sequence)
        if known is None:
            return f"this host does not know manifest {sequence} any more"
        try:
            doubt = doubt_about(known.backup.snapshot, btrfs.subvolume_facts(path))
        except (SourceMissing, NotASubvolume) as error:
            return error.message
        return doubt.detail if doubt is not None else None

    def _begin_again(self, intent: BackupIntent, error: UploadGone) -> None:
        """Give one chunk's upload up, so that the next attempt opens another and keeps everything else.

        It may be aborted already, or be one that its store will not let us go on with.
        """
        progress = self.parts.state.progress(intent.backup_id)
        for chunk in progress.chunks.values() if progress else ():
            if chunk.key == error.context.get("key") and chunk.stored is None:
                with self.parts.stop.interrupting():
                    self.parts.bucket.abort_upload(chunk.key, chunk.upload_id)

    def drop(self, progress: BackupProgress) -> None:
        """Give an unfinished backup up: abort its uploads, delete its snapshot, forget it.

        In this order: killed in between, the next run finds it in the journal and gives it up again.
        """
        with self.parts.stop.interrupting():
            for chunk in progress.chunks.values():
                if chunk.stored is None:
                    self.parts.bucket.abort_upload(chunk.key, chunk.upload_id)
        self._delete_snapshot(progress.intent)
        self.parts.state.finish(progress.intent.backup_id)

    def _delete_snapshot(self, intent: BackupIntent) -> None:
        for snapshot in self.parts.state.own_snapshots(self.source.name):
            if snapshot.backup_id == intent.backup_id:
                retention.delete_own(self.parts, snapshot)

    def measure(self) -> None:
        """Run a full stream through the chunker and hash it; nothing is stored, the snapshot is removed.

        The journal learns nothing of it: killed, it leaves an announced snapshot to remove and no backup to go on with.
        """
        retention.delete_unfinished(self.parts, self.source)
        decision = Decision(self.source.name, ActionKind.FULL, Reason.FORCED, "measured", sequence=1)
        intent = self._snapshot(decision)
        try:
            with self._uploaded(intent, {}, StoreFacts(True, False, False), _Measured(self), measurer.main) as result:
                self._report(intent, replace(result, uploaded_bytes=0))
        finally:
            self._delete_snapshot(intent)

    def _resumed(self, progress: BackupProgress | None, backup_id: str, *, say: bool) -> dict[int, ResumedChunk]:
        resumed: dict[int, ResumedChunk] = {}
        if progress is not None and progress.chunks:
            with self.parts.stop.interrupting():
                resumed = stored_so_far(self.parts.bucket, progress)
        if say:
            reusable = sum(chunk.known_bytes for chunk in resumed.values())
            self.log.info(events.BACKUP_RESUMED, backup_id=backup_id, reused_bytes=reusable)
        return resumed

    @contextmanager
    def _uploaded(
        self,
        intent: BackupIntent,
        resumed: dict[int, ResumedChunk],
        facts: StoreFacts,
        observer: UploadObserver,
        worker_main: Callable[..., None] = uploader.main,
        inspect: Callable[[bytes], None] = lambda beginning: None,
    ) -> Iterator[UploadResult]:
        """Upload the stream; inside it is stored, and what was started for it ends meanwhile."""
        settings = self.parts.settings
        spool = spool_slots(
            on_disk=settings.spool.enabled,
            size_bytes=settings.spool.size,
            segment_size_bytes=intent.segment_size_bytes,
            concurrency=settings.s3.concurrency,
        )
        plan = StreamPlan(
            send_argv=btrfs.send_command(
                intent.snapshot.path, intent.send_parent_path, intent.protocol, intent.compressed_data
            ),
            sizes=Sizes(intent.segment_size_bytes, intent.chunk_size_bytes),
            spool=spool,
            spool_parent=Path(settings.spool.dir) if settings.spool.enabled else MEMORY_DIRECTORY,
            s3=_as_begun(settings.s3, intent),
            store_facts=facts,
            worker_main=worker_main,
        )
        self.log.info(
            events.SEND_STARTED,
            backup_id=intent.backup_id,
            kind=str(intent.kind),
            snapshot=intent.snapshot.path,
            send_parent=intent.send_parent_path,
            concurrency=spool.effective_concurrency,
        )
        upload = StreamUpload(
            plan,
            UploadBoard(lambda index: self.layout.chunk_key(intent.backup_id, index), resumed),
            observer,
            ChildBoot(self.parts.run_id, "supervisor", settings.log),
            children.owner_label(self.parts.run_id),
            self.parts.stop,
            self.log,
            self._child_started,
            self.parts.progress,
            inspect,
        )
        if not isinstance(self.parts.progress, NoProgress):  # the estimate is for someone who watches
            estimate = estimate_stream(self.source.path, intent.kind)
            self.parts.progress.begin(self.source.name, str(intent.kind), estimate.bytes, estimate.meaning)
        with ending(self.parts.progress), upload.stored() as result:
            yield result

    def _child_started(self, pid: int, process: str) -> None:
        self.log.info(events.PROCESS_STARTED, pid=pid, process=process, child_pid=pid, child=process)
        identity = children.identify(pid)
        if identity is not None:
            self.parts.state.record_child(self.parts.run_id, identity, process)

    def _report(self, intent: BackupIntent, result: UploadResult) -> None:
        rate = result.stream_bytes / result.elapsed_seconds if result.elapsed_seconds else 0.0
        self.log.info(
            events.BACKUP_METRICS,
            backup_id=intent.backup_id,
            kind=str(intent.kind),
            total_bytes=result.stream_bytes,
            uploaded_bytes=result.uploaded_bytes,
            reused_bytes=result.reused_bytes,
            elapsed_seconds=round(result.elapsed_seconds, 3),
            throughput=format_rate(rate),
            throughput_bytes_per_second=round(rate),
            chunks=len(result.chunks),
            segments=result.segments,
            retries=result.retries,
            peak_spool_bytes=result.peak_spool_bytes,
        )


def _make_directory(base_dir: Path) -> None:
    if base_dir.is_dir():
        return  # to ask for what is there would wait in the kernel where the filesystem is frozen
    try:
        base_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BtrfsError(
            f"the snapshot directory {base_dir} cannot be made: {error.strerror}",
            hint="look at what lies there, or set snapshots.base_dir to another directory",
        ) from error


def _as_begun(s3: S3Settings, intent: BackupIntent) -> S3Settings:
    """Return the settings with what an interrupted backup must go on with, whatever the config says today."""
    classes = s3.storage_class.model_copy(update={"chunks": intent.storage_class})
    return s3.model_copy(update={"storage_class": classes, "sse": intent.sse})


class _Journal:
    """Writes down what S3 has as soon as it is known."""

    def __init__(self, backup: SourceBackup, intent: BackupIntent) -> None:
        self._backup = backup
        self._intent = intent
        self._state = backup.parts.state

    def chunk_opened(self, chunk_index: int, key: str, upload_id: str) -> None:
        self._state.chunk_opened(self._intent.backup_id, chunk_index, key, upload_id)

    def part_stored(self, chunk_index: int, receipt: Receipt, *, reused: bool) -> None:
        # Also a reused one: the run that sent it may have died before it wrote it down.
        self._state.part_stored(self._intent.backup_id, chunk_index, receipt)
        self._backup.parts.progress.stored(receipt.bytes, reused=reused)

    def chunk_stored(self, report: ChunkStored) -> None:
        stored = StoredChunk(report.bytes, report.etag, report.sha256_composite)
        self._state.chunk_stored(self._intent.backup_id, report.chunk_index, stored)
        self._backup.log.info(
            events.CHUNK_COMPLETED,
            backup_id=self._intent.backup_id,
            chunk_index=report.chunk_index,
            bytes=report.bytes,
            sha256_composite=report.sha256_composite,
        )

    def bytes_moved(self, count: int) -> None:
        self._backup.parts.progress.moved(count)


class _Measured:
    """Writes nothing down."""

    def __init__(self, backup: SourceBackup) -> None:
        self._progress = backup.parts.progress

    def chunk_opened(self, chunk_index: int, key: str, upload_id: str) -> None:
        """Nothing is stored."""

    def part_stored(self, chunk_index: int, receipt: Receipt, *, reused: bool) -> None:
        """Count it as done."""
        self._progress.stored(receipt.bytes, reused=reused)

    def chunk_stored(self, report: ChunkStored) -> None:
        """Nothing is stored."""

    def bytes_moved(self, count: int) -> None:
        """Nothing moves."""
