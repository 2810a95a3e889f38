"""The manifests of one source, read from the bucket when they are needed and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from b2s.adapters.s3 import Bucket
from b2s.core.chain import Broken, Stored
from b2s.core.layout import Layout
from b2s.core.limits import BACKUPS_PER_SOURCE_MAX, MANIFEST_BYTES_MAX
from b2s.core.manifest_codec import decode, sha256_of
from b2s.errors import ManifestDamaged, ManifestMissing, ObjectMissing, StoredDataError, StoreRefused


class SourceManifests(Mapping[int, Stored | Broken]):
    """What is committed under one source name, by sequence: a `core.chain.World` that is read as it is looked at.

    One LIST answers which backups exist; a manifest's content is fetched and decoded once, on first use.
    """

    def __init__(self, bucket: Bucket, layout: Layout) -> None:
        self.bucket = bucket
        self.layout = layout
        self._sequences: list[int] | None = None
        self._entries: dict[int, Stored | Broken] = {}

    @property
    def sequences(self) -> list[int]:
        """Return the sequences of all committed backups, ascending; keys that are not ours are left out.

        Raises:
            StoreRefused: The store claims to hold more of them than anybody can have made.
        """
        if self._sequences is None:
            listed = self.bucket.list_objects(self.layout.manifests_prefix)
            found: set[int] = set()
            for entry in listed:
                sequence = self.layout.parse_manifest_key(entry.key)
                if sequence is not None:
                    found.add(sequence)
                if len(found) > BACKUPS_PER_SOURCE_MAX:
                    raise StoreRefused(f"the store lists more than {BACKUPS_PER_SOURCE_MAX} manifests of one source")
            self._sequences = sorted(found)
        return self._sequences

    def __getitem__(self, sequence: int) -> Stored | Broken:
        """Return one manifest, or why it cannot be trusted."""
        if sequence not in self._entries:
            if sequence not in self.sequences:
                raise KeyError(sequence)
            self._entries[sequence] = self._read(sequence)
        return self._entries[sequence]

    def __iter__(self) -> Iterator[int]:
        """Iterate over the sequences without reading a manifest."""
        return iter(self.sequences)

    def __len__(self) -> int:
        """Return how many backups are committed."""
        return len(self.sequences)

    def stored(self, sequence: int) -> Stored:
        """Return one manifest with the hash of its stored bytes.

        Raises:
            StoredDataError: It is missing or cannot be trusted.
        """
        entry = self[sequence]
        if isinstance(entry, Broken):
            raise entry.error
        return entry

    def _read(self, sequence: int) -> Stored | Broken:
        key = self.layout.manifest_key(sequence)
        try:
            body = self.bucket.get(key, MANIFEST_BYTES_MAX)
        except ObjectMissing as error:
            gone = ManifestMissing(f"the manifest {key} is gone; it was there a moment ago", sequence=sequence, key=key)
            gone.__cause__ = error
            return Broken(sequence, gone)
        except StoreRefused as error:
            if error.context.get("http_status") is not None:  # the store's refusal, not our bound
                raise
            return Broken(sequence, ManifestDamaged(error.message, key=key, finding="manifest_damaged"))
        sha256 = sha256_of(body)
        try:
            manifest = decode(body, key_sequence=sequence, source=self.layout.source)
        except StoredDataError as error:
            error.context["key"] = key
            error.context.setdefault("finding", "manifest_damaged")
            return Broken.of(sequence, error, sha256)
        return Stored(manifest, sha256, len(body))
