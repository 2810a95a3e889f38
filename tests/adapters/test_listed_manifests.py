"""What one LIST shows of a source, and what the cache saves, on each real store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from b2s.adapters.state import State
from b2s.backup.catalog import Catalog
from b2s.backup.manifests import ManifestCache, Manifests
from b2s.core.layout import Layout, new_backup_id
from b2s.core.manifest import Manifest, ManifestChunk, ManifestLink, SendParent, StreamFacts
from b2s.core.manifest_codec import encode, sha256_of
from b2s.core.model import Kind
from b2s.core.world import Health
from tests.adapters.conftest import PREFIX, Store, segments_of
from tests.format import sample

HOST_ID = "ab" * 32
BEGIN = datetime(2026, 1, 4, 1, 0, tzinfo=UTC)


class Writer:
    """Commits small backups of a source to a store, as a run would."""

    def __init__(self, store: Store, state: State) -> None:
        self.store = store
        self.bucket = store.bucket()
        self.layout = Layout(PREFIX, "data")
        self.cache = ManifestCache(state, "the store", "data")
        self.committed: list[Manifest] = []
        self._checks = 0

    def commit(self, kind: Kind) -> Manifest:
        """Store one chunk and its manifest."""
        sequence = len(self.committed) + 1
        created_at = BEGIN + sequence * timedelta(days=7)
        backup_id = new_backup_id(created_at, kind, f"{sequence:08x}")
        key = self.layout.chunk_key(backup_id, 0)
        segment = segments_of(1000 + sequence)[0]
        upload_id, receipts, facts = self.store.put(self.bucket, key, [segment])
        stored = self.bucket.complete_upload(key, upload_id, receipts, facts)
        before = self.committed[-1] if self.committed else None
        link = sha256_of(encode(before)) if before else ""
        composite = sample.sample_chunks(backup_id, (1,))[0].sha256_composite
        chunk = ManifestChunk(f"chunks/{backup_id}/000000", stored.bytes, composite, stored.etag, (segment.sha256,))
        chunk = replace(chunk, sha256_composite=stored.sha256_composite or composite)
        parent = None
        if kind is Kind.INCREMENTAL and before:
            parent = SendParent(before.backup_id, before.sequence, link, before.snapshot.uuid)
        manifest = replace(
            sample.full(),
            backup_id=backup_id,
            sequence=sequence,
            kind=kind,
            created_at=created_at,
            previous=ManifestLink(before.sequence, link) if before else None,
            send_parent=parent,
            snapshot=replace(sample.full().snapshot, uuid=str(UUID(int=sequence))),
            stream=StreamFacts(stored.bytes, 1, False),
            chunks=(chunk,),
        )
        self.bucket.put_new(self.layout.manifest_key(sequence), encode(manifest))
        self.committed.append(manifest)
        return manifest

    def look(self) -> Manifests:
        """List what is there."""
        manifests = Manifests(self.bucket, self.layout, self.cache)
        manifests.list()
        return manifests

    def delete(self, key: str) -> None:
        """Delete an object past b2s."""
        self.store.server.client().delete_object(Bucket=self.store.name, Key=key)

    def seen(self) -> tuple[int, int, int]:
        """Return how many LIST, HEAD and GET the proxy saw; it writes in order, so the last call is waited for."""
        self._checks += 1
        self.bucket.check()
        self.store.calls("HeadBucket", self._checks)
        operations = ("ListObjectsV2", "HeadObject", "GetObject")
        first, second, third = (len(self.store.proxy.history(operation)) for operation in operations)
        return first, second, third


@pytest.fixture
def writer(store: Store, tmp_path: Path) -> Iterator[Writer]:
    """Return a writer with a chain of three behind an older full."""
    with State.open(str(tmp_path / "state" / "state.db"), HOST_ID) as state:
        made = Writer(store, state)
        for kind in (Kind.FULL, Kind.FULL, Kind.INCREMENTAL, Kind.INCREMENTAL):
            made.commit(kind)
        yield made


def test_a_warm_cache_needs_one_list_and_nothing_else(writer: Writer) -> None:
    """The second look costs one LIST; its sizes and ETags prove the chunks without a HEAD."""
    chain = writer.look().head_chain()
    assert chain is not None
    assert (chain.head.sequence, chain.length, chain.health) == (4, 3, Health.UNCHECKED)
    lists, heads, gets = writer.seen()
    manifests = writer.look()
    chain = manifests.head_chain()
    assert chain is not None
    assert manifests.with_chunks(chain).health is Health.WHOLE
    assert writer.seen() == (lists + 1, heads, gets)


def test_the_cache_alone_knows_the_chain(writer: Writer) -> None:
    """After a look, and after a commit, the newest chain is known without asking the bucket."""
    looked = writer.look().head_chain()
    known = writer.cache.head_chain()
    assert known == looked
    manifest = writer.commit(Kind.INCREMENTAL)
    writer.cache.keep_committed(manifest, sha256_of(encode(manifest)))
    before = writer.seen()
    known = writer.cache.head_chain()
    assert known is not None
    assert known.full is not None
    assert (known.head.sequence, known.full.sequence, known.length) == (5, 2, 4)
    assert [backup.sequence for backup in writer.cache.chain(known.head)] == [2, 3, 4, 5]
    assert writer.seen() == before


def test_a_missing_chunk_and_a_replaced_one_are_found(writer: Writer) -> None:
    """A chunk that is gone, or has its size but not its content, makes the chain unusable."""
    chunk = writer.layout.absolute(writer.committed[1].chunks[0].key)
    size = writer.committed[1].chunks[0].bytes
    writer.store.server.client().put_object(Bucket=writer.store.name, Key=chunk, Body=b"x" * size)
    manifests = writer.look()
    chain = manifests.head_chain()
    assert chain is not None
    found = manifests.with_chunks(chain)
    assert found.health is Health.CHUNK_MISSING
    assert "another checksum" in found.detail
    writer.delete(chunk)
    manifests = writer.look()
    chain = manifests.head_chain()
    assert chain is not None
    assert "is not in the bucket" in manifests.with_chunks(chain).detail


def test_chunks_of_other_chains_do_not_matter(writer: Writer) -> None:
    """An older chain that lost a chunk does not stop the newest."""
    writer.delete(writer.layout.absolute(writer.committed[0].chunks[0].key))
    manifests = writer.look()
    chain = manifests.head_chain()
    assert chain is not None
    assert manifests.with_chunks(chain).health is Health.WHOLE


def test_a_missing_manifest_is_found(writer: Writer) -> None:
    """A link of the chain that is not listed any more is missing, although the cache still knows it."""
    writer.look().head_chain()
    writer.delete(writer.layout.manifest_key(2))
    chain = writer.look().head_chain()
    assert chain is not None
    assert (chain.health, chain.full) == (Health.MANIFEST_MISSING, None)


def test_a_lost_newest_manifest_is_noticed(writer: Writer) -> None:
    """The cache saw number 4 committed; a bucket without it has lost something. An empty one begins anew."""
    writer.look().head_chain()
    writer.delete(writer.layout.manifest_key(4))
    manifests = writer.look()
    assert "manifest 4" in manifests.lost
    top = manifests.top()
    assert top is not None
    assert top.sequence == 3
    for manifest in writer.committed:
        writer.delete(writer.layout.manifest_key(manifest.sequence))
        writer.delete(writer.layout.absolute(manifest.chunks[0].key))
    manifests = writer.look()
    assert (manifests.lost, manifests.top(), manifests.head_chain()) == ("", None, None)


def test_a_manifest_that_is_replaced_is_read_again(writer: Writer) -> None:
    """Another ETag means other bytes: the cache is not believed, and the chain is broken."""
    writer.look().head_chain()
    forged = replace(writer.committed[1], stream=replace(writer.committed[1].stream, protocol=2))
    key = writer.layout.manifest_key(2)
    writer.store.server.client().put_object(Bucket=writer.store.name, Key=key, Body=encode(forged))
    chain = writer.look().head_chain()
    assert chain is not None
    assert chain.health is Health.CHAIN_BROKEN
    assert "does not link" in chain.detail


def test_unreadable_manifests_break_the_chain_and_hold_their_numbers(writer: Writer) -> None:
    """A newest manifest that is garbage is still the top, named by the hash of its bytes."""
    key = writer.layout.manifest_key(5)
    writer.store.server.client().put_object(Bucket=writer.store.name, Key=key, Body=b"garbage")
    manifests = writer.look()
    assert manifests.top() == ManifestLink(5, sha256_of(b"garbage"))
    assert manifests.holder(5) == "a manifest that cannot be read"
    assert manifests.holder(4) == writer.committed[3].backup_id
    assert manifests.holder(6) is None
    chain = manifests.head_chain()
    assert chain is not None
    assert (chain.head.sequence, chain.health) == (4, Health.CHAIN_BROKEN)


def test_the_catalog_shows_all_of_it(writer: Writer) -> None:
    """Two chains, their bytes, what no manifest names, what was never completed, and what cannot be read."""
    client = writer.store.server.client()
    stray = writer.layout.chunk_key("20270101T000000Z-full-00000009", 0)
    client.put_object(Bucket=writer.store.name, Key=stray, Body=b"y" * 77)
    client.put_object(Bucket=writer.store.name, Key=f"{PREFIX}/longer/prefix/manifests/00000001.json", Body=b"{}")
    client.put_object(Bucket=writer.store.name, Key=writer.layout.manifest_key(5), Body=b"garbage")
    open_key = writer.layout.chunk_key("20270101T000000Z-full-00000009", 1)
    upload_id, _, _ = writer.store.put(writer.bucket, open_key, segments_of(999))
    catalog = Catalog.of(writer.bucket, PREFIX)
    (source,) = catalog.document()["sources"]
    assert source["source"] == "data"
    shapes = [(chain["whole"], [backup["sequence"] for backup in chain["backups"]]) for chain in source["chains"]]
    assert shapes == [(True, [1]), (True, [2, 3, 4]), (False, [5])]
    assert len({frozenset(backup) for chain in source["chains"] for backup in chain["backups"]}) == 1, (
        "one shape for all"
    )
    assert source["chains"][1]["bytes"] == sum(each.stream.bytes for each in writer.committed[1:])
    assert (source["unreferenced_bytes"], source["unfinished_bytes"]) == (77, 999)
    assert catalog.damaged
    assert Catalog.of(writer.bucket, PREFIX, ["other"]).document()["sources"][0]["chains"] == []
    writer.bucket.abort_upload(open_key, upload_id)
    writer.delete(writer.layout.absolute(writer.committed[2].chunks[0].key))
    (source,) = Catalog.of(writer.bucket, PREFIX, ["data"]).document()["sources"]
    assert [chain["whole"] for chain in source["chains"]] == [True, False, False]
    assert source["unfinished_bytes"] == 0
