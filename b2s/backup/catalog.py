"""Everything that lies under a prefix, from the bucket alone: what `b2s list` shows.

One LIST shows manifests and chunks, so every chain is also compared with the objects that are really there. A
manifest that cannot be read is shown as such and stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from b2s.adapters.s3 import Bucket
from b2s.backup.manifests import fetch
from b2s.core.chain import Broken, Chain, Stored, chains, link_problems
from b2s.core.layout import Layout, source_name_problem, sources_prefix
from b2s.core.model import ObjectEntry
from b2s.core.store_settings import S3Settings
from b2s.errors import UploadGone


@dataclass(slots=True)
class SourceCatalog:
    """What lies under one source name."""

    layout: Layout
    sequences: set[int] = field(default_factory=set)  # of the manifests that were listed
    world: dict[int, Stored | Broken] = field(default_factory=dict)  # what was read of them, by sequence
    chunks: dict[str, ObjectEntry] = field(default_factory=dict)  # by key
    unfinished_bytes: int = 0  # in parts of multipart uploads that were neither completed nor aborted

    @property
    def unreferenced_bytes(self) -> int:
        """Return the bytes of completed chunks that no manifest names, those of a running backup included."""
        named = {self.layout.absolute(chunk.key) for stored in self._stored() for chunk in stored.manifest.chunks}
        return sum(entry.bytes for key, entry in self.chunks.items() if key not in named)

    def problems(self) -> list[str]:
        """Return what is wrong with the manifests and chunks, as far as the LIST shows it."""
        found = [entry.error.message for entry in self.world.values() if isinstance(entry, Broken)]
        found += [chain.problem.message for chain in self._chains() if chain.problem is not None]
        found += [problem for stored in self._stored() for problem in self._chunk_problems(stored)]
        found += [error.message for error in link_problems(self.world)]
        return list(dict.fromkeys(found))

    def document(self) -> dict[str, Any]:
        """Return this source as `list --json` shows it."""
        shown = [self._chain_document(chain) for chain in self._chains()]
        broken = [entry for _, entry in sorted(self.world.items()) if isinstance(entry, Broken)]
        shown += [_broken_document(entry) for entry in broken]
        return {
            "source": self.layout.source,
            "chains": shown,
            "unfinished_bytes": self.unfinished_bytes,
            "unreferenced_bytes": self.unreferenced_bytes,
            "problems": self.problems(),
        }

    def _chain_document(self, chain: Chain) -> dict[str, Any]:
        problem = chain.problem.message if chain.problem is not None else None
        damaged = {chain.backups[0].manifest.sequence} if problem is not None else set()
        for stored in chain.backups:  # send parents come first
            own = next(iter(self._chunk_problems(stored)), None)
            problem = problem or own
            parent = stored.manifest.send_parent
            if own is not None or (parent is not None and parent.sequence in damaged):
                damaged.add(stored.manifest.sequence)
        return {
            "whole": problem is None,
            "problem": problem,
            "bytes": sum(stored.manifest.stream.bytes for stored in chain.backups),
            "backups": [
                {**self._backup_document(stored), "restorable": stored.manifest.sequence not in damaged}
                for stored in chain.backups
            ],
        }

    def _backup_document(self, stored: Stored) -> dict[str, Any]:
        manifest = stored.manifest
        return {
            "backup_id": manifest.backup_id,
            "sequence": manifest.sequence,
            "kind": str(manifest.kind),
            "created_at": manifest.created_at.isoformat(),
            "committed_at": manifest.committed_at.isoformat(),
            "bytes": manifest.stream.bytes,
            "chunks": len(manifest.chunks),
            "send_parent": manifest.send_parent.sequence if manifest.send_parent is not None else None,
            "storage_class": self._storage_class(stored),
            "host": manifest.host.name,
            "path": manifest.source.path,
        }

    def _storage_class(self, stored: Stored) -> str:
        """Return the class its chunks are in now: a lifecycle rule may have moved them."""
        keys = [self.layout.absolute(chunk.key) for chunk in stored.manifest.chunks]
        found = {self.chunks[key].storage_class for key in keys if key in self.chunks}
        return "+".join(sorted(found)) or stored.manifest.storage.storage_class

    def _chunk_problems(self, stored: Stored) -> list[str]:
        problems = []
        for chunk in stored.manifest.chunks:
            entry = self.chunks.get(self.layout.absolute(chunk.key))
            if entry is None:
                problems.append(f"chunk {chunk.key} is not in the bucket")
            elif entry.bytes != chunk.bytes:
                problems.append(f"chunk {chunk.key} has {entry.bytes} bytes, its manifest says {chunk.bytes}")
        return problems

    def _chains(self) -> tuple[Chain, ...]:
        return chains(self.world)

    def _stored(self) -> list[Stored]:
        return [entry for entry in self.world.values() if isinstance(entry, Stored)]


@dataclass(frozen=True, slots=True)
class Catalog:
    """What lies under a prefix, by source name."""

    sources: tuple[SourceCatalog, ...]

    @classmethod
    def read(cls, s3: S3Settings, names: Sequence[str] = (), *, stop: Callable[[], None] = lambda: None) -> Catalog:
        """Ask the bucket for everything, or for the sources named.

        Raises:
            StoreError: S3 could not be asked.
        """
        return cls.of(Bucket.connect(s3, stop=stop), s3.prefix, names)

    @classmethod
    def of(cls, bucket: Bucket, prefix: str, names: Sequence[str] = ()) -> Catalog:
        """Ask an open bucket."""
        found = {name: SourceCatalog(Layout(prefix, name)) for name in names}
        for begin in [source.layout.source_prefix for source in found.values()] or [sources_prefix(prefix)]:
            for entry in bucket.list_objects(begin):
                _place(found, prefix, entry)
            _measure_uploads(found, bucket, prefix, begin)
        for source in found.values():
            for sequence in sorted(source.sequences):
                source.world[sequence] = fetch(bucket, source.layout, sequence)
        return cls(tuple(found[name] for name in sorted(found)))

    @property
    def damaged(self) -> bool:
        """Return whether anything that was committed is missing or cannot be trusted."""
        return any(source.problems() for source in self.sources)

    def document(self) -> dict[str, Any]:
        """Return the JSON document of `b2s list`."""
        return {"sources": [source.document() for source in self.sources]}


def _place(found: dict[str, SourceCatalog], prefix: str, entry: ObjectEntry) -> None:
    """Put one listed object where it belongs; keys that b2s would not build are not ours."""
    source = _source_at(found, prefix, entry.key)
    if source is None:
        return
    sequence = source.layout.parse_manifest_key(entry.key)
    if sequence is not None:
        source.sequences.add(sequence)
    elif source.layout.parse_chunk_key(entry.key) is not None:
        source.chunks[entry.key] = entry
    else:
        return
    found[source.layout.source] = source


def _source_at(found: dict[str, SourceCatalog], prefix: str, key: str) -> SourceCatalog | None:
    """Return the source whose name stands in this key; a new one is not in `found` yet."""
    name, slash, _rest = key.removeprefix(sources_prefix(prefix)).partition("/")
    if not slash or source_name_problem(name):
        return None
    return found.get(name) or SourceCatalog(Layout(prefix, name))


def _measure_uploads(found: dict[str, SourceCatalog], bucket: Bucket, prefix: str, begin: str) -> None:
    """Add up what unfinished multipart uploads hold: no LIST shows it, every bill does."""
    for upload in bucket.list_uploads(begin):
        source = _source_at(found, prefix, upload.key)
        if source is None or source.layout.parse_chunk_key(upload.key) is None:
            continue
        try:
            parts = bucket.list_parts(upload.key, upload.upload_id)
        except UploadGone:
            continue
        found[source.layout.source] = source
        source.unfinished_bytes += sum(part.bytes for part in parts)


def _broken_document(entry: Broken) -> dict[str, Any]:
    """Return a manifest that cannot be read as a chain of its own: nothing is known but its number."""
    unknown = (
        *("backup_id", "kind", "created_at", "committed_at", "bytes", "chunks", "storage_class", "send_parent"),
        *("host", "path"),
    )
    backups = [{**dict.fromkeys(unknown), "sequence": entry.sequence, "restorable": False}]
    return {"whole": False, "problem": entry.error.message, "bytes": None, "backups": backups}
