"""One restore, from the question which backup to the writable subvolume: the order of its steps, top to bottom."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from b2s.adapters import btrfs, children, host, spool
from b2s.adapters.clock import Clock
from b2s.adapters.s3 import Bucket
from b2s.core import events
from b2s.core.chain import Stored, resolve
from b2s.core.fetch_board import segments_of
from b2s.core.layout import Layout
from b2s.core.manifest import Manifest
from b2s.core.model import SubvolumeFacts
from b2s.core.progress import NoProgress, ProgressSink, ending
from b2s.core.snapshots import is_untouched
from b2s.core.store_settings import S3Settings
from b2s.core.stream_opening import StreamOpening, parse_opening
from b2s.core.units import format_bytes, format_rate
from b2s.errors import B2sError, BtrfsError, ChunkDamaged, ReceiveFailed, StoredDataError
from b2s.processes.child import ChildBoot, process_context
from b2s.processes.signals import StopRequest
from b2s.restore.compare import Depth, compare_trees, find_sent_snapshot
from b2s.restore.manifests import SourceManifests
from b2s.restore.pipeline import DownloadPlan, DownloadTotals, StreamDownloads
from b2s.restore.points import PresentChunk, Wanted, check_chunks, choose
from b2s.restore.retrieval import RetrievalPass, RetrievalPolicy
from b2s.restore.staging import ReceivedStore, Staging, check_target, sweep_staging


class Keep(StrEnum):
    """What stays of what was received, read-only, in `.b2s-received/<source>/`."""

    NONE = "none"
    LAST = "last"  # the restored point: the next incremental applies to it
    ALL = "all"  # every member of the chain


class Verified(StrEnum):
    """What a restore was checked against afterwards; the hashes were checked in any case."""

    NOTHING = "nothing"
    MANIFEST = "manifest"  # sizes, hashes and UUIDs agree with the manifest; the sent snapshot is not on this host
    CONTENT = "content"  # compared with the sent snapshot, file by file


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What is asked for."""

    source: str
    target: Path
    wanted: Wanted
    keep: Keep
    depth: Depth
    sample_files: int


@dataclass(frozen=True, slots=True)
class RestoreMeans:
    """How it may be done."""

    s3: S3Settings
    retrieval: RetrievalPolicy
    concurrency: int


@dataclass(frozen=True, slots=True)
class RestoreSurroundings:
    """The command this restore runs in.

    Attributes:
        on_child: Told pid and process name of every child started.
        progress: Gets lines for a person who waits.
        watch: Sees how far it is.
    """

    boot: ChildBoot
    stop: StopRequest
    log: Any
    on_child: Callable[[int, str], None]
    progress: Callable[[str], None]
    clock: Clock
    watch: ProgressSink = field(default_factory=NoProgress)


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of it."""

    backup_id: str
    target: Path
    received_backups: int
    reused_backups: int
    verified: Verified
    compared_files: int


class RestoreRun:
    """One restore. Used once."""

    def __init__(
        self, request: RestoreRequest, means: RestoreMeans, bucket: Bucket, surroundings: RestoreSurroundings
    ) -> None:
        self._request = request
        self._means = means
        self._bucket = bucket
        self._around = surroundings
        self._log = surroundings.log.bind(source=request.source)
        self._layout = Layout(means.s3.prefix, request.source)
        self._owner = children.owner_label(surroundings.boot.run_id)
        self._retrieval = RetrievalPass(
            bucket,
            means.retrieval,
            surroundings.clock,
            self._log,
            surroundings.progress,
            counted=lambda ready, archived: surroundings.watch.counted(request.source, "thaw", ready, archived),
        )

    def execute(self) -> Restored:
        """Restore.

        Raises:
            UsageError: The target exists (`TargetExists`) or cannot be made.
            BtrfsError: This process may not receive, or there is no `btrfs`.
            StoredDataError: What is stored is missing or damaged; nothing was received of the damaged backup.
            RetrievalPending: Archived chunks are on their way and waiting is off.
            ReceiveFailed: `btrfs receive` failed (`StreamRefused`: on this stream); what it left is deleted.
            Stopped: A signal asked for it; what was received whole is reused when the command is repeated.
        """
        try:
            return self._execute()
        except B2sError as error:
            if isinstance(error, ReceiveFailed):
                self._log.error(events.RECEIVE_FAILED, stderr=error.context.get("receive_stderr", ""))
            self._log.error(events.RESTORE_FAILED, error=error.message, hint=error.hint)
            raise

    def _execute(self) -> Restored:
        _check_host()
        target = check_target(self._request.target)
        self._remove_leftovers(target.parent)
        process_context()  # gets ready while we talk to the store
        with self._around.stop.interrupting():
            chain = self._resolve()
            store = ReceivedStore(target.parent, self._request.source)
            base, missing = _split_reusable(chain, store)
            self._announce(chain, missing, shutil.disk_usage(target.parent).free)
            chunks = check_chunks(
                self._bucket, self._layout, [stored.manifest for stored in missing], self._around.stop.check
            )
            chunks = self._retrieve(chunks)
        kept = self._receive_missing(missing, chunks, base, store, target)
        btrfs.create_writable_snapshot(kept.path, str(target))
        self._log.info(events.RESTORE_CREATED, target=str(target), backup_id=chain[-1].manifest.backup_id)
        verified, compared = self._verify(chain[-1].manifest, kept, target)
        if self._request.keep is Keep.NONE:
            store.drop(kept)
        return Restored(
            chain[-1].manifest.backup_id, target, len(missing), len(chain) - len(missing), verified, compared
        )

    def _remove_leftovers(self, beside: Path) -> None:
        """Remove what killed restores left: half-received subvolumes beside the target, spools in memory."""
        for path in sweep_staging(beside, children.owner_lives):
            self._log.warning(events.ORPHAN_REMOVED, what="staging directory", path=str(path))
        for path in spool.sweep(spool.MEMORY_DIRECTORY, children.owner_lives):
            self._log.warning(events.ORPHAN_REMOVED, what="spool", path=str(path))

    def _resolve(self) -> tuple[Stored, ...]:
        manifests = SourceManifests(self._bucket, self._layout)
        return resolve(manifests, choose(manifests, self._request.wanted).manifest.sequence)

    def _retrieve(self, chunks: Sequence[PresentChunk]) -> list[PresentChunk]:
        with ending(self._around.watch):
            return self._retrieval.run(chunks)

    def _announce(self, chain: Sequence[Stored], missing: Sequence[Stored], free_bytes: int) -> None:
        point = chain[-1].manifest
        size = sum(stored.manifest.stream.bytes for stored in missing)
        self._log.info(
            events.RESTORE_PLANNED,
            backup_id=point.backup_id,
            kind=point.kind.value,
            created_at=point.created_at.isoformat(),
            backups=len(missing),
            reused_backups=len(chain) - len(missing),
            total_bytes=size,
            free_bytes=free_bytes,
        )
        if point.snapshot.nested_subvolumes:
            self._log.warning(
                events.NESTED_ABSENT,
                backup_id=point.backup_id,
                nested_subvolumes=len(point.snapshot.nested_subvolumes),
                first=point.snapshot.nested_subvolumes[0],
            )
        self._around.progress(
            f"restoring {point.backup_id} of {self._request.source}: {len(missing)} of {len(chain)} backups of its "
            f"chain, {format_bytes(size)}"
        )
        if size > free_bytes:
            self._around.progress(
                f"the target filesystem has only {format_bytes(free_bytes)} free; mounted with -o compress=zstd it may "
                "hold more"
            )

    def _receive_missing(
        self,
        missing: Sequence[Stored],
        chunks: Sequence[PresentChunk],
        base: SubvolumeFacts | None,
        store: ReceivedStore,
        target: Path,
    ) -> SubvolumeFacts:
        """Receive the rest of the chain, one backup on top of the other; return the last one as it is kept."""
        kept = base
        if missing:
            started = time.monotonic()
            downloads = self._downloads([stored.manifest for stored in missing])
            staging = Staging.create(target.parent, self._around.boot.run_id, self._owner)
            size = sum(stored.manifest.stream.bytes for stored in missing)
            self._around.watch.begin(self._request.source, "restore", size)
            try:
                with downloads:
                    for stored in missing:
                        kept = self._receive_one(stored.manifest, chunks, kept, staging, store, downloads)
            except BaseException as error:
                _clean_up(staging, error)
                raise
            finally:
                self._around.watch.end()
            staging.remove()
            self._report(missing, chunks, downloads, time.monotonic() - started)
        assert kept is not None, "a chain has at least one member"
        return kept

    def _receive_one(
        self,
        manifest: Manifest,
        chunks: Sequence[PresentChunk],
        previous: SubvolumeFacts | None,
        staging: Staging,
        store: ReceivedStore,
        downloads: StreamDownloads,
    ) -> SubvolumeFacts:
        objects = [(chunk.key, chunk.facts.etag) for chunk in chunks if chunk.backup_id == manifest.backup_id]
        openings: list[StreamOpening] = []

        def inspect(first_segment: memoryview) -> None:
            openings.append(check_opening(manifest, first_segment))

        argv = btrfs.receive_command(str(staging.receive_path))
        fed = downloads.feed(segments_of(manifest, objects), argv, inspect=inspect)
        if fed.stream_bytes != manifest.stream.bytes:
            raise ReceiveFailed(f"{fed.stream_bytes} bytes were fed, the stream has {manifest.stream.bytes}")
        received = staging.received(openings[0].uuid, openings[0].ctransid)
        _check_parent(received, previous, openings[0])
        kept = store.keep(received, manifest.backup_id)
        staging.empty()
        if previous is not None and self._request.keep is not Keep.ALL:
            store.drop(previous)
        self._log.info(events.BACKUP_RECEIVED, backup_id=manifest.backup_id, bytes=fed.stream_bytes)
        return kept

    def _downloads(self, manifests: Sequence[Manifest]) -> StreamDownloads:
        plan = DownloadPlan.of(
            manifests,
            self._means.s3,
            self._means.concurrency,
            spool.MEMORY_DIRECTORY,
            self._bucket.round_trip_seconds,
        )
        around = self._around
        return StreamDownloads(
            plan,
            around.boot,
            self._owner,
            around.stop,
            self._log,
            around.on_child,
            around.watch,
            on_tick=self._stay_readable,
        )

    def _stay_readable(self) -> None:
        with self._around.stop.interrupting():  # it may wait for the store
            self._retrieval.stay_readable()

    def _verify(self, manifest: Manifest, kept: SubvolumeFacts, target: Path) -> tuple[Verified, int]:
        """Compare with the sent snapshot where it is on this host; else what the manifest proves has to do."""
        if self._request.depth is Depth.NONE:
            return Verified.NOTHING, 0
        sent = find_sent_snapshot(manifest)
        if sent is None:
            self._log.info(events.RESTORE_VERIFIED, against=Verified.MANIFEST.value, backup_id=manifest.backup_id)
            return Verified.MANIFEST, 0
        sample = self._request.sample_files if self._request.depth is Depth.SAMPLE else None
        result = compare_trees(Path(sent.path), Path(kept.path), sample, self._around.stop.check)
        if result.differences:
            raise StoredDataError(
                f"{target} differs from the snapshot {sent.path} in {result.different} places; the first: "
                f"{result.differences[0]}",
                hint="the restored subvolume was left in place to be looked at",
                differences="; ".join(result.differences),
            )
        self._log.info(
            events.RESTORE_VERIFIED,
            against=Verified.CONTENT.value,
            backup_id=manifest.backup_id,
            entries=result.entries,
            files=result.files,
            bytes=result.content_bytes,
        )
        return Verified.CONTENT, result.files

    def _report(
        self,
        missing: Sequence[Stored],
        chunks: Sequence[PresentChunk],
        downloads: StreamDownloads,
        elapsed_seconds: float,
    ) -> None:
        point = missing[-1].manifest
        size = sum(stored.manifest.stream.bytes for stored in missing)
        totals: DownloadTotals = downloads.totals
        rate = size / max(elapsed_seconds, 1e-6)
        self._log.info(
            events.RESTORE_METRICS,
            backup_id=point.backup_id,
            kind=point.kind.value,
            backups=len(missing),
            total_bytes=size,
            downloaded_bytes=totals.downloaded_bytes,
            elapsed_seconds=round(elapsed_seconds, 3),
            throughput=format_rate(rate),
            throughput_bytes_per_second=round(rate),
            chunks=len(chunks),
            segments=sum(len(chunk.chunk.segment_sha256) for chunk in chunks),
            retries=totals.retries,
            peak_spool_bytes=totals.peak_slots * downloads.plan.slot_bytes,
        )


def _check_host() -> None:
    """Make sure that this process can receive at all, before archived chunks are asked for and waited for.

    Raises:
        BtrfsToolMissing: There is no `btrfs`.
        BtrfsError: We are not allowed to.
    """
    btrfs.find_btrfs()
    if not host.may_administer():
        raise BtrfsError(
            "only root can receive a subvolume",
            hint="run it as root (sudo -E keeps the credentials); in a container root also needs CAP_SYS_ADMIN",
        )


def check_opening(manifest: Manifest, first_segment: memoryview) -> StreamOpening:
    """Return what the stream says it makes, if that is what the manifest says.

    The stream's uuid may differ from the snapshot's: a snapshot of a received subvolume is sent under the uuid that
    was received. Its transaction is the snapshot's own in any case.

    Raises:
        ChunkDamaged: It is the stream of another snapshot, or of another kind.
    """
    opening = parse_opening(first_segment)
    if opening.kind is not manifest.kind or opening.ctransid != manifest.snapshot.ctransid:
        raise ChunkDamaged(
            f"the stored stream of {manifest.backup_id} is {opening.kind.value} of transaction {opening.ctransid}, its "
            f"manifest says {manifest.kind.value} of {manifest.snapshot.ctransid}",
            finding="stream_damaged",
        )
    return opening


def _split_reusable(chain: Sequence[Stored], store: ReceivedStore) -> tuple[SubvolumeFacts | None, tuple[Stored, ...]]:
    """Return the newest member that was received before, and the members that come after it."""
    for index in reversed(range(len(chain))):
        kept = store.find(chain[index].manifest.snapshot)
        if kept is not None:
            return kept, tuple(chain[index + 1 :])
    return None, tuple(chain)


def _check_parent(received: SubvolumeFacts, previous: SubvolumeFacts | None, opening: StreamOpening) -> None:
    """Check on top of what `btrfs receive` applied an incremental: it takes any subvolume with the right UUID.

    Raises:
        ReceiveFailed: It took one that is not what was sent: somebody changed it after it was received.
    """
    if previous is None or received.parent_uuid == previous.uuid:
        return
    for facts in btrfs.find_by_uuid(received.path, received.parent_uuid or ""):
        whole = opening.parent_uuid in (facts.uuid, facts.received_uuid)
        if facts.uuid == received.parent_uuid and whole and facts.read_only and is_untouched(facts):
            return
    raise ReceiveFailed(
        f"btrfs receive applied the incremental to the subvolume {received.parent_uuid}, which is not what was sent",
        hint="another copy of the send parent on this filesystem was changed after it was received; delete that copy",
    )


def _clean_up(staging: Staging, error: BaseException) -> None:
    """Delete what a failed receive left; the first error stays the one to report."""
    try:
        staging.remove()
    except B2sError as later:
        if isinstance(error, B2sError):
            error.context["left_behind"] = later.message
