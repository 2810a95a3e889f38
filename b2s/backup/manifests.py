"""What is committed under one source name: from the cache alone, or from one LIST and what the cache lacks.

The LIST begins at the chunks of the full that the newest known chain hangs from: `chunks/` sorts before
`manifests/`, so the same pages that show the manifests prove that the chunks of the chain are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from b2s.adapters.state import State
from b2s.core import summary_json
from b2s.core.chain import Broken, Stored
from b2s.core.layout import Layout
from b2s.core.limits import CHAIN_LENGTH_MAX, MANIFEST_BYTES_MAX
from b2s.core.manifest import Manifest, ManifestLink
from b2s.core.manifest_codec import decode, sha256_of
from b2s.core.model import Kind, ObjectEntry
from b2s.core.summary_json import CachedSummary
from b2s.core.world import BackupSummary, ChunkSummary, HeadChain, Health
from b2s.errors import ManifestDamaged, ManifestMissing, ObjectMissing, StoreRefused

if TYPE_CHECKING:
    from b2s.adapters.s3 import Bucket


def fetch(bucket: Bucket, layout: Layout, sequence: int) -> Stored | Broken:
    """Fetch one manifest that was listed, and say whether it can be trusted.

    Raises:
        StoreError: S3 could not be asked.
    """
    key = layout.manifest_key(sequence)
    try:
        body = bucket.get(key, MANIFEST_BYTES_MAX)
    except ObjectMissing as error:
        gone = ManifestMissing(f"the manifest {key} was listed a moment ago and is gone", key=key)
        gone.__cause__ = error
        return Broken(sequence, gone)
    except StoreRefused as error:
        if error.context.get("http_status") is not None:
            raise
        return Broken(sequence, ManifestDamaged(error.message, key=key))  # our bound: too large to be one
    sha256 = sha256_of(body)
    try:
        return Stored(decode(body, key_sequence=sequence, source=layout.source), sha256, len(body))
    except ManifestDamaged as error:
        return Broken.of(sequence, error, sha256)


class ManifestCache:
    """What the state keeps of the manifests of one source; it may be lost at any time."""

    def __init__(self, state: State, store: str, source: str) -> None:
        self._state = state
        self._store = store
        self._source = source

    def newest(self) -> int | None:
        """Return the highest sequence this host knows to be committed."""
        return self._state.newest_cached(self._store, self._source)

    def get(self, sequence: int, etag: str | None = None) -> CachedSummary | None:
        """Return what is kept of a manifest, where an ETag is given only if it is the kept one's."""
        kept = self._state.cached_manifest(self._store, self._source, sequence)
        if kept is None or (etag is not None and kept.etag != (etag or None)):
            return None
        try:
            return summary_json.decode(kept.body)
        except ValueError:
            return None

    def keep(self, cached: CachedSummary, etag: str) -> None:
        """Keep a manifest, where the state may be written."""
        if not self._state.read_only:
            body = summary_json.encode(cached)
            self._state.cache_manifest(self._store, self._source, cached.backup.sequence, etag, body)

    def keep_committed(self, manifest: Manifest, manifest_sha256: str) -> None:
        """Keep a manifest that was just written; the next LIST will tell its ETag."""
        backup = BackupSummary.of(manifest, manifest_sha256)
        cached = CachedSummary(backup, backup.sequence, 1)
        if backup.send_parent is not None:
            below = self.get(backup.send_parent.sequence)
            length = below.chain_length + 1 if below is not None and below.chain_length is not None else None
            cached = CachedSummary(backup, below.full_sequence if below is not None else None, length)
        self.keep(cached, "")

    def chain(self, head: BackupSummary) -> tuple[BackupSummary, ...]:
        """Return the chain of this backup, oldest first, as far as it is kept."""
        backups = [head]
        while (parent := backups[-1].send_parent) is not None and (below := self.get(parent.sequence)) is not None:
            backups.append(below.backup)
        return tuple(reversed(backups))

    def forget(self) -> None:
        """Forget all of them, where the state may be written."""
        if not self._state.read_only:
            self._state.forget_manifests(self._store, self._source)

    def head_chain(self) -> HeadChain | None:
        """Return the newest chain this host knows of, without asking the bucket; None where that is not enough."""
        sequence = self.newest()
        head = self.get(sequence) if sequence is not None else None
        if head is None or head.full_sequence is None or head.chain_length is None:
            return None
        full = self.get(head.full_sequence)
        if full is None or full.backup.kind is not Kind.FULL:
            return None
        return HeadChain(head.backup, full.backup, head.chain_length, Health.UNCHECKED)


@dataclass(slots=True)
class Manifests:
    """What one LIST of a source showed; manifests are fetched when they are asked for and not in the cache.

    Attributes:
        backups: The newest chain, oldest first; filled by `head_chain`.
    """

    bucket: Bucket
    layout: Layout
    cache: ManifestCache
    backups: list[BackupSummary] = field(default_factory=list)
    _listed: dict[int, ObjectEntry] = field(default_factory=dict)
    _older: list[ObjectEntry] = field(default_factory=list)  # manifests before the known chain: seldom looked at
    _chunks: dict[str, ObjectEntry] = field(default_factory=dict)
    _read: dict[int, BackupSummary | Broken] = field(default_factory=dict)

    def list(self) -> None:
        """Ask the bucket what is there.

        Raises:
            StoreError: S3 could not be asked.
        """
        known = self.cache.head_chain()
        full = known.full if known else None
        # Only the moment of the id: SeaweedFS walks directories, and skips one that is named like `StartAfter` whole.
        chunks_prefix, manifests_prefix = self.layout.chunks_prefix, self.layout.manifests_prefix
        begin = chunks_prefix + full.backup_id.partition("-")[0] if full else ""
        chain_begin = self.layout.manifest_key(full.sequence) if full else manifests_prefix
        for entry in self.bucket.list_objects(self.layout.source_prefix, begin):
            if entry.key.startswith(chunks_prefix):
                self._chunks[entry.key] = entry
            elif entry.key >= chain_begin:
                self._place(entry)
            elif entry.key.startswith(manifests_prefix):
                self._older.append(entry)
        if not self._listed:
            self._place_older()

    @property
    def lost(self) -> str:
        """Return a sentence on a manifest that this host saw committed and that is gone; "" when none is.

        Where nothing at all is left, the bucket was emptied on purpose, and the source begins anew.
        """
        newest = self.cache.newest()
        if newest is None or newest in self._listed or not (self._listed or self._chunks):
            return ""
        return f"manifest {newest}, which this host saw committed, is not in the bucket any more"

    def top(self) -> ManifestLink | None:
        """Return the highest manifest, readable or not; None where there is none.

        Raises:
            StoredDataError: Not even its bytes can be had, so the next manifest cannot name it.
        """
        if not self._listed:
            return None
        sequence = max(self._listed)
        found = self._at(sequence)
        if isinstance(found, BackupSummary):
            return found.link
        if found.sha256 is None:
            raise found.error
        return ManifestLink(sequence, found.sha256)

    def holder(self, sequence: int) -> str | None:
        """Return the id of the backup that has this number; None where the number is free."""
        if not self._is_listed(sequence):
            return None
        found = self._at(sequence)
        return "a manifest that cannot be read" if isinstance(found, Broken) else found.backup_id

    def head_chain(self) -> HeadChain | None:
        """Return the chain that ends in the newest readable manifest; None where none can be read."""
        unreadable = ""
        for sequence in self._newest_first():
            found = self._at(sequence)
            if isinstance(found, BackupSummary):
                return self._chain_of(found, unreadable)
            unreadable = unreadable or found.error.message
        return None

    def with_chunks(self, chain: HeadChain) -> HeadChain:
        """Return the chain with its chunks looked for: each is there with the size and checksum recorded, or not.

        The LIST already showed size and ETag. Where it does not agree with the manifest, one HEAD per chunk decides:
        a store may list other ETags than it gave on completion, and an object copied in place has a new one.

        Raises:
            StoreError: S3 could not be asked.
        """
        for backup in self.backups:
            for chunk in backup.chunks:
                problem = self._problem_with(chunk)
                if problem:
                    return HeadChain.of(self.backups, Health.CHUNK_MISSING, problem)
        return HeadChain(chain.head, chain.full, chain.length, Health.WHOLE)

    def _problem_with(self, chunk: ChunkSummary) -> str:
        key = self.layout.absolute(chunk.key)
        listed = self._chunks.get(key)
        if listed is not None and listed.etag and (listed.bytes, listed.etag) == (chunk.bytes, chunk.etag):
            return ""
        try:
            stored = self.bucket.head(key)
        except ObjectMissing:
            return f"{chunk.key} is not in the bucket"
        if stored.bytes != chunk.bytes:
            return f"{chunk.key} has {stored.bytes} bytes, its manifest says {chunk.bytes}"
        if stored.sha256_composite is not None:
            same = stored.sha256_composite == chunk.sha256_composite
        else:
            same = stored.etag == chunk.etag
        return "" if same else f"{chunk.key} has another checksum than its manifest says"

    def _chain_of(self, head: BackupSummary, unreadable: str) -> HeadChain:
        self.backups = [head]
        health, detail = (Health.CHAIN_BROKEN, unreadable) if unreadable else (Health.UNCHECKED, "")
        while (parent := self.backups[-1].send_parent) is not None:
            found = self._at(parent.sequence) if self._is_listed(parent.sequence) else None
            if found is None:
                health, detail = Health.MANIFEST_MISSING, f"manifest {parent.sequence} is not in the bucket"
                break
            if isinstance(found, Broken):
                health, detail = Health.CHAIN_BROKEN, found.error.message
                break
            if found.as_send_parent() != parent or len(self.backups) == CHAIN_LENGTH_MAX:
                child = self.backups[-1].sequence
                health, detail = Health.CHAIN_BROKEN, f"manifest {child} does not link to manifest {parent.sequence}"
                break
            self.backups.append(found)
        self.backups.reverse()
        chain = HeadChain.of(self.backups, health, detail)
        if chain.full is not None and health is Health.UNCHECKED:
            self._keep_head(chain, chain.full)
        return chain

    def _keep_head(self, chain: HeadChain, full: BackupSummary) -> None:
        """Note in the cache where the chain of the head begins, so that the next call need not follow it."""
        cached = CachedSummary(chain.head, full.sequence, chain.length)
        if self.cache.get(chain.head.sequence) != cached:
            self.cache.keep(cached, self._listed[chain.head.sequence].etag)

    def _newest_first(self) -> Iterator[int]:
        newer = sorted(self._listed, reverse=True)
        yield from newer
        self._place_older()
        yield from sorted(self._listed.keys() - set(newer), reverse=True)

    def _is_listed(self, sequence: int) -> bool:
        if sequence not in self._listed:
            self._place_older()
        return sequence in self._listed

    def _place_older(self) -> None:
        for entry in self._older:
            self._place(entry)
        self._older.clear()

    def _place(self, entry: ObjectEntry) -> None:
        sequence = self.layout.parse_manifest_key(entry.key)
        if sequence is not None:
            self._listed[sequence] = entry

    def _at(self, sequence: int) -> BackupSummary | Broken:
        """Return a listed manifest, from the cache if its ETag is still the same."""
        if sequence not in self._read:
            etag = self._listed[sequence].etag
            cached = self.cache.get(sequence, etag)
            self._read[sequence] = cached.backup if cached is not None else self._fetched(sequence, etag)
        return self._read[sequence]

    def _fetched(self, sequence: int, etag: str) -> BackupSummary | Broken:
        found = fetch(self.bucket, self.layout, sequence)
        if isinstance(found, Broken):
            return found
        backup = BackupSummary.of(found.manifest, found.sha256)
        self.cache.keep(CachedSummary(backup), etag)
        return backup
