"""Which backup is restored, what chain it hangs from, and whether all of that is in the bucket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from b2s.adapters.s3 import Bucket
from b2s.core.chain import Broken, Stored
from b2s.core.layout import Layout
from b2s.core.manifest import Manifest, ManifestChunk
from b2s.core.model import ObjectFacts
from b2s.errors import BackupNotFound, ChunkDamaged, ChunkMissing, ObjectMissing, StoredDataError
from b2s.restore.manifests import SourceManifests


@dataclass(frozen=True, slots=True)
class Wanted:
    """The point that was asked for; both None: the newest."""

    backup_id: str | None = None
    at: datetime | None = None  # aware; the newest backup whose `created_at` is not after it


@dataclass(frozen=True, slots=True)
class PresentChunk:
    """A chunk that is in the bucket, as big as its manifest says."""

    backup_id: str
    chunk: ManifestChunk
    facts: ObjectFacts  # of the moment it was checked; `etag` holds the download to this very object

    @property
    def key(self) -> str:
        """Return the full key."""
        return self.facts.key


def choose(manifests: SourceManifests, wanted: Wanted) -> Stored:
    """Return the backup that is wanted; walks from the newest backwards and reads only what it must.

    Newest means highest sequence: clocks jump, sequences do not.

    Raises:
        BackupNotFound: Nothing matches.
        StoredDataError: A manifest that may be the one cannot be read; an older one is not taken in its place.
    """
    source = manifests.layout.source
    if not manifests:
        raise BackupNotFound(
            f"there is no backup of {source} under {manifests.layout.manifests_prefix}",
            hint="`b2s list` shows what this bucket and prefix hold",
        )
    unreadable: StoredDataError | None = None
    for sequence in reversed(manifests.sequences):
        entry = manifests[sequence]
        if isinstance(entry, Broken):
            unreadable = unreadable or entry.error
        elif wanted.backup_id is not None:
            if entry.manifest.backup_id == wanted.backup_id:
                return entry
        elif wanted.at is not None and entry.manifest.created_at > wanted.at:
            unreadable = None  # it was newer still, so not the one
        elif unreadable is not None:
            break
        else:
            return entry
    if unreadable is not None:
        hint = "`b2s list` shows the others; name one with --backup"
        raise type(unreadable)(unreadable.message, hint=unreadable.hint or hint, **unreadable.context) from unreadable
    if wanted.backup_id is not None:
        raise BackupNotFound(f"{source} has no backup {wanted.backup_id[:80]!r}", hint="`b2s list` shows their ids")
    assert wanted.at is not None, "without a wish the newest that can be read is the one"
    oldest = manifests.stored(manifests.sequences[0]).manifest.created_at
    raise BackupNotFound(
        f"{source} has no backup of {wanted.at:%Y-%m-%d %H:%M:%S %Z} or before; the oldest is of "
        f"{oldest.astimezone(wanted.at.tzinfo):%Y-%m-%d %H:%M:%S %Z}",
        hint="`b2s list` shows when each was made",
    )


def check_chunks(
    bucket: Bucket, layout: Layout, members: Sequence[Manifest], stop: Callable[[], None]
) -> list[PresentChunk]:
    """Ask for every chunk of these backups and return them in stream order, before anything is read.

    Raises:
        ChunkMissing: One is not there.
        ChunkDamaged: One has another size or SHA-256 than its manifest says.
    """
    present: list[PresentChunk] = []
    for manifest in members:
        for chunk in manifest.chunks:
            stop()
            present.append(check_chunk(bucket, layout, manifest.backup_id, chunk))
    return present


def check_chunk(bucket: Bucket, layout: Layout, backup_id: str, chunk: ManifestChunk) -> PresentChunk:
    """Ask for one chunk and compare what the store knows of it without a download.

    Raises:
        ChunkMissing, ChunkDamaged: As for `check_chunks`; the context's `finding` says which.
    """
    key = layout.absolute(chunk.key)
    context: dict[str, Any] = {"backup_id": backup_id, "key": key}
    try:
        facts = bucket.head(key)
    except ObjectMissing as error:
        raise ChunkMissing(
            f"the chunk {key} of {backup_id} is not in the bucket",
            hint="backups of another chain may be whole; `b2s verify` tells",
            finding="chunk_missing",
            **context,
        ) from error
    if facts.bytes != chunk.bytes:
        raise ChunkDamaged(
            f"the chunk {key} has {facts.bytes} bytes, its manifest says {chunk.bytes}", finding="chunk_size", **context
        )
    if facts.sha256_composite is not None and facts.sha256_composite != chunk.sha256_composite:
        raise ChunkDamaged(
            f"the chunk {key} has the checksum {facts.sha256_composite}, its manifest says {chunk.sha256_composite}",
            finding="chunk_checksum",
            **context,
        )
    return PresentChunk(backup_id, chunk, facts)
