"""What is wrong in the bucket: every manifest, every link, every chunk; with their data, every segment and stream.

Without data nothing is downloaded but manifests, so archived chunks need no retrieval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from b2s.adapters.s3 import Bucket
from b2s.core import events
from b2s.core.chain import Broken, Stored, chains, find, link_problems, resolve
from b2s.core.layout import Layout, source_of_manifest_key, sources_prefix
from b2s.core.manifest import Manifest
from b2s.core.progress import NoProgress, ProgressSink, ending
from b2s.core.text import counted
from b2s.errors import (
    BackupNotFound,
    ChainBroken,
    ChunkDamaged,
    ChunkMissing,
    ManifestMissing,
    ObjectArchived,
    ReceiveFailed,
    StoredDataError,
)
from b2s.restore.manifests import SourceManifests
from b2s.restore.points import PresentChunk, check_chunk

DataCheck = Callable[[Manifest, Sequence[PresentChunk]], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    finding: str  # SPEC section 5
    source: str
    backup_id: str | None
    key: str | None
    detail: str


@dataclass(slots=True)
class VerifyReport:
    """What was checked and what is wrong."""

    findings: list[Finding] = field(default_factory=list)
    backups_checked: int = 0
    chunks_by_sha256: int = 0  # the store knows the SHA-256 of so many
    chunks_by_etag: int = 0  # of these it knows none: only size and ETag were compared
    streams_checked: int = 0
    archived: list[str] = field(default_factory=list)  # backups whose data cannot be read before a retrieval

    def document(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return asdict(self)


class Verifier:
    """Checks sources one by one and collects what it finds."""

    def __init__(
        self,
        bucket: Bucket,
        prefix: str,
        stop: Callable[[], None],
        log: Any,
        check_data: DataCheck | None = None,
        watch: ProgressSink | None = None,
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._stop = stop
        self._log = log
        self._check_data = check_data
        self._watch = watch or NoProgress()
        self.report = VerifyReport()

    def sources(self) -> list[str]:
        """Return the names of all sources under the prefix that have a manifest."""
        listed = self._bucket.list_objects(sources_prefix(self._prefix))
        found = {source_of_manifest_key(self._prefix, entry.key) for entry in listed}
        return sorted(name for name in found if name is not None)

    def check(self, source: str, backup_id: str | None = None) -> None:
        """Check a whole source, or one backup of it with the chain it hangs from.

        Raises:
            BackupNotFound: There is no such source or backup.
        """
        layout = Layout(self._prefix, source)
        world = SourceManifests(self._bucket, layout)
        if not world:
            raise BackupNotFound(f"there is no backup of {source} under {layout.manifests_prefix}")
        if backup_id is None:
            self._check_manifests(layout, world)
            chosen: Sequence[Stored] = [entry for entry in world.values() if isinstance(entry, Stored)]
        else:
            chosen = self._chain_of(layout, world, backup_id)
        with ending(self._watch):
            for number, stored in enumerate(chosen):
                self._watch.counted(source, "verify", number, len(chosen))
                self._check_backup(layout, stored.manifest)

    def _check_manifests(self, layout: Layout, world: SourceManifests) -> None:
        missing: set[int] = set()
        for sequence, entry in world.items():
            self._stop()
            if isinstance(entry, Broken):
                self._found_error(layout, entry.error, None, layout.manifest_key(sequence))
        for problem in _problems(world):
            if not isinstance(problem, ManifestMissing):
                self._found_error(layout, problem)
            elif (sequence := problem.context.get("sequence", 0)) not in missing:
                missing.add(sequence)
                self._found_error(layout, problem, None, layout.manifest_key(sequence) if sequence else None)

    def _chain_of(self, layout: Layout, world: SourceManifests, backup_id: str) -> Sequence[Stored]:
        target = find(world, backup_id)
        try:
            return resolve(world, target.manifest.sequence)
        except StoredDataError as error:
            self._found_error(layout, error, backup_id)
            return (target,)

    def _check_backup(self, layout: Layout, manifest: Manifest) -> None:
        present: list[PresentChunk] = []
        for chunk in manifest.chunks:
            self._stop()
            try:
                found = check_chunk(self._bucket, layout, manifest.backup_id, chunk)
            except (ChunkMissing, ChunkDamaged) as error:
                self._found_error(layout, error, manifest.backup_id)
                continue
            present.append(found)
            if found.facts.sha256_composite is not None:
                self.report.chunks_by_sha256 += 1
                continue
            self.report.chunks_by_etag += 1
            if found.facts.etag != chunk.etag:
                detail = f"its ETag is {found.facts.etag}, its manifest says {chunk.etag}"
                self._found("chunk_checksum", layout, manifest.backup_id, found.key, detail)
        if self._check_data is not None and len(present) == len(manifest.chunks):
            self._read(layout, manifest, present)
        self.report.backups_checked += 1

    def _read(self, layout: Layout, manifest: Manifest, present: Sequence[PresentChunk]) -> None:
        assert self._check_data is not None
        try:
            self._check_data(manifest, present)
        except (ChunkDamaged, ChunkMissing) as error:
            self._found_error(layout, error, manifest.backup_id)
        except ReceiveFailed as error:
            detail = f"{error.message}: {error.context.get('receive_stderr', '')}"
            self._found("stream_damaged", layout, manifest.backup_id, None, detail)
        except ObjectArchived:
            self.report.archived.append(manifest.backup_id)
        else:
            self.report.streams_checked += 1

    def _found_error(
        self, layout: Layout, error: StoredDataError, backup_id: str | None = None, key: str | None = None
    ) -> None:
        context = error.context
        self._found(
            str(context.get("finding") or _FINDINGS.get(type(error), "manifest_damaged")),
            layout,
            backup_id or context.get("backup_id"),
            key or context.get("key"),
            error.message,
        )

    def _found(self, finding: str, layout: Layout, backup_id: str | None, key: str | None, detail: str) -> None:
        found = Finding(finding, layout.source, backup_id, key, detail)
        self.report.findings.append(found)
        self._log.warning(events.VERIFY_FOUND, **asdict(found))


_FINDINGS: dict[type[StoredDataError], str] = {
    ManifestMissing: "manifest_missing",
    ChainBroken: "chain_broken",
    ChunkMissing: "chunk_missing",
    ChunkDamaged: "segment_checksum",
}


def _problems(world: SourceManifests) -> Iterator[StoredDataError]:
    """Yield what is wrong between manifests: gaps, torn links, chains without their beginning."""
    yield from _gaps_before_broken(world)
    yield from link_problems(world)
    for chain in chains(world):
        if chain.problem is None:
            continue
        first = chain.backups[0].manifest
        if isinstance(chain.problem, ManifestMissing):
            yield chain.problem
        hanging = len(chain.backups) - 1
        on_top = f" and {counted(hanging, 'backup')} on top of it" if hanging else ""
        yield ChainBroken(
            f"{first.backup_id}{on_top} cannot be restored: {chain.problem.message}",
            backup_id=first.backup_id,
        )


def _gaps_before_broken(world: SourceManifests) -> Iterator[StoredDataError]:
    """Yield the gaps that no readable manifest's `previous` shows."""
    before = 0
    for sequence, entry in world.items():
        if isinstance(entry, Broken) and sequence > before + 1:
            count = sequence - before - 1
            what = f"manifest {before + 1}" if count == 1 else f"manifests {before + 1} to {sequence - 1}"
            yield ManifestMissing(f"{what}: not in the bucket", sequence=before + 1)
        before = sequence
