"""Every method of the bucket on each real store, with nothing in the way."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from b2s.adapters.s3_replies import composite_of
from b2s.core.limits import GIB
from b2s.core.model import Retrieval
from b2s.errors import ChunkDamaged, KeyTaken, ObjectChanged, ObjectMissing, StoreRefused, UploadGone
from tests.adapters.conftest import PREFIX, SEGMENT_BYTES, Segment, Store, segments_of

KEY = f"{PREFIX}/data/chunks/20260101T000000Z-full-00000001/000000"
MANIFEST = f"{PREFIX}/data/manifests/00000001.json"


def test_chunk_round_trip(store: Store) -> None:
    """A chunk of two segments is stored, confirmed, found by HEAD and read back by ranges, bit for bit."""
    segments = segments_of(SEGMENT_BYTES, 1_234_567)
    whole = b"".join(each.body for each in segments)
    bucket = store.bucket()
    bucket.check()
    upload_id, receipts, facts = store.put(bucket, KEY, segments)
    assert [(part.part_number, part.bytes, part.etag) for part in bucket.list_parts(KEY, upload_id)] == [
        (each.part_number, each.bytes, each.etag) for each in receipts
    ]
    done = bucket.complete_upload(KEY, upload_id, receipts, facts)
    assert (done.bytes, done.sha256_composite) == (len(whole), composite_of(receipts))
    assert done.retrieval is Retrieval.NOT_NEEDED
    head = bucket.head(KEY)
    assert (head.bytes, head.etag) == (done.bytes, done.etag)
    assert head.sha256_composite in {done.sha256_composite, None}
    buffer = bytearray(len(whole) - 7)
    store.moved.clear()
    bucket.get_range(KEY, done.etag, 5, memoryview(buffer)[:-1])
    assert buffer[:-1] == whole[5 : 5 + len(buffer) - 1]
    assert sum(store.moved) == len(buffer) - 1
    assert not store.retries


@pytest.mark.long
@pytest.mark.timeout(900)
def test_largest_part(store_on: Callable[[str], Store], tmp_path: Path) -> None:
    """A part of 5 GiB, more than 32 bits can count, goes up, is confirmed and comes back in one range (S12)."""
    store = store_on("seaweed")
    bucket = store.bucket(endpoint_url=store.server.endpoint_url, read_timeout=timedelta(minutes=5))
    with _mapped(tmp_path / "part", 5 * GIB) as body, _mapped(tmp_path / "back", 5 * GIB) as back:
        body[:9], body[-9:] = b"beginning", b"end of it"
        part = Segment(body)
        upload_id, receipts, facts = store.put(bucket, KEY, [part, Segment(b"x")])
        assert [each.bytes for each in bucket.list_parts(KEY, upload_id)] == [5 * GIB, 1]
        done = bucket.complete_upload(KEY, upload_id, receipts, facts)
        assert (done.bytes, done.sha256_composite) == (5 * GIB + 1, composite_of(receipts))
        bucket.get_range(KEY, done.etag, 0, back)
        assert hashlib.sha256(back).digest() == part.sha256
    assert not store.retries


@contextmanager
def _mapped(path: Path, size: int) -> Iterator[memoryview]:
    """Map a new sparse file."""
    with path.open("w+b") as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as mapping, memoryview(mapping) as view:
            yield view
    path.unlink()


def test_probe_tells_what_the_store_verifies(store: Store) -> None:
    """The probe finds the measured facts of each store and leaves nothing behind."""
    facts = store.bucket().probe(KEY)
    found = (facts.sha256, facts.content_md5, facts.etag_is_md5)
    assert (
        found
        == {"seaweed": (True, True, True), "rclone": (False, True, True), "moto": (False, False, True)}[
            store.server.name
        ]
    )
    assert store.bucket().list_uploads(PREFIX) == []
    assert list(store.bucket().list_objects("")) == []


def test_complete_is_safe_to_repeat(store: Store) -> None:
    """Completing again what is complete gives the same facts."""
    bucket = store.bucket()
    upload_id, receipts, facts = store.put(bucket, KEY, segments_of(SEGMENT_BYTES, 1))
    assert bucket.complete_upload(KEY, upload_id, receipts, facts) == bucket.complete_upload(
        KEY, upload_id, receipts, facts
    )


def test_complete_of_an_aborted_upload(real_store: Store) -> None:
    """An upload that somebody aborted is gone, and says so in every call but abort."""
    store = real_store  # moto answers 500 to the Complete of an aborted upload
    bucket = store.bucket(retry_for="1s")
    upload_id, receipts, facts = store.put(bucket, KEY, segments_of(1000))
    bucket.abort_upload(KEY, upload_id)
    bucket.abort_upload(KEY, upload_id)
    with pytest.raises(UploadGone):
        bucket.complete_upload(KEY, upload_id, receipts, facts)
    with pytest.raises(UploadGone):
        bucket.list_parts(KEY, upload_id)
    with pytest.raises(ObjectMissing):
        bucket.head(KEY)


def test_uploads_are_listed_under_their_prefix_only(store: Store) -> None:
    """Open uploads of another source are not in the list."""
    bucket = store.bucket()
    assert bucket.list_uploads(PREFIX) == []
    mine, other = bucket.create_upload(KEY), bucket.create_upload(f"{PREFIX}/data2/chunks/x/000000")
    assert [(each.key, each.upload_id) for each in bucket.list_uploads(f"{PREFIX}/data/")] == [(KEY, mine)]
    assert {each.upload_id for each in bucket.list_uploads(PREFIX)} == {mine, other}


@pytest.mark.parametrize("body", [b"", b"{}", os.urandom(300_000)], ids=["empty", "small", "large"])
def test_put_new_writes_once(store: Store, body: bytes) -> None:
    """A new object is written; the same again is fine; other bytes are refused and change nothing."""
    bucket = store.bucket()
    bucket.put_new(MANIFEST, body)
    bucket.put_new(MANIFEST, body)
    assert bucket.get(MANIFEST, len(body)) == body
    with pytest.raises(KeyTaken):
        bucket.put_new(MANIFEST, body + b"x")
    with pytest.raises(KeyTaken):
        bucket.put_new(MANIFEST, body[:-1] + b"y" if body else b"y")
    assert store.stored(MANIFEST) == body
    store.calls("PutObject", 1)


def test_get_refuses_what_is_too_large(store: Store) -> None:
    """An object one byte above the bound is not read."""
    bucket = store.bucket()
    bucket.put_new(MANIFEST, b"12345")
    with pytest.raises(StoreRefused, match="at most 4"):
        bucket.get(MANIFEST, 4)
    assert bucket.get(MANIFEST, 5) == b"12345"


def test_get_range_of_a_replaced_object(store: Store) -> None:
    """Bytes of an object with another ETag are never taken for the old one's."""
    bucket = store.bucket()
    bucket.put_new(MANIFEST, b"a" * 100)
    etag = bucket.head(MANIFEST).etag
    store.server.client().put_object(Bucket=store.name, Key=MANIFEST, Body=b"b" * 100)
    buffer = bytearray(10)
    with pytest.raises(ObjectChanged):
        bucket.get_range(MANIFEST, etag, 50, memoryview(buffer))
    assert buffer == bytes(10)


@pytest.mark.parametrize("offset", [91, 100, 200])
def test_get_range_beyond_the_end(store: Store, offset: int) -> None:
    """A range that the object does not hold is damage, not something to try again."""
    bucket = store.bucket()
    bucket.put_new(MANIFEST, b"a" * 100)
    with pytest.raises(ChunkDamaged):
        bucket.get_range(MANIFEST, bucket.head(MANIFEST).etag, offset, memoryview(bytearray(10)))
    assert not store.retries


def test_list_objects_over_a_thousand(store: Store) -> None:
    """All pages are listed, in keys that need encoding too, from anywhere on."""
    client = store.server.client()
    odd = f"{PREFIX}/odd/a b+c&d~é"
    keys = [f"{PREFIX}/data/manifests/{number:08d}.json" for number in range(1, 1004)]
    for key in [*keys, odd, "elsewhere"]:
        client.put_object(Bucket=store.name, Key=key, Body=b"1")
    bucket = store.bucket()
    found = list(bucket.list_objects(f"{PREFIX}/data/manifests/"))
    assert [each.key for each in found] == keys
    assert {(each.bytes, each.etag, each.storage_class) for each in found} == {
        (1, "c4ca4238a0b923820dcc509a6f75849b", "STANDARD")
    }
    after = bucket.list_objects(f"{PREFIX}/data/manifests/", start_after=keys[1000])
    assert [each.key for each in after] == keys[1001:]
    assert [each.key for each in bucket.list_objects(f"{PREFIX}/odd/")] == [odd]
    assert list(bucket.list_objects(f"{PREFIX}/none/")) == []
    assert bucket.get(odd, 1) == b"1"


def test_list_parts_over_a_thousand(store_on: Callable[[str], Store]) -> None:
    """Parts beyond the first page are listed too."""
    store = store_on("moto")
    bucket = store.bucket()
    upload_id = bucket.create_upload(KEY)
    client = store.server.client()
    for number in range(1, 1003):
        client.upload_part(Bucket=store.name, Key=KEY, UploadId=upload_id, PartNumber=number, Body=b"x")
    assert [part.part_number for part in bucket.list_parts(KEY, upload_id)] == list(range(1, 1003))


def test_retrieval_of_archived_objects(store_on: Callable[[str], Store]) -> None:
    """A chunk in an archive class is cold, can be asked for twice, and is then readable until its date."""
    store = store_on("moto")
    bucket = store.bucket(storage_class={"chunks": "DEEP_ARCHIVE"})
    upload_id, receipts, facts = store.put(bucket, KEY, segments_of(1000))
    done = bucket.complete_upload(KEY, upload_id, receipts, facts)
    assert (done.storage_class, done.retrieval) == ("DEEP_ARCHIVE", Retrieval.COLD)
    bucket.request_retrieval(done, 3, "Standard")
    bucket.request_retrieval(done, 3, "Standard")
    ready = bucket.head(KEY)
    assert ready.retrieval is Retrieval.READY
    assert ready.retrieval_expires_at is not None and ready.retrieval_expires_at.tzinfo is not None
    buffer = bytearray(1000)
    bucket.get_range(KEY, ready.etag, 0, memoryview(buffer))
    bucket.put_new(MANIFEST, b"{}")
    with pytest.raises(StoreRefused):
        bucket.request_retrieval(bucket.head(MANIFEST), 3, "Standard")


def test_class_and_encryption_are_asked_for(store_on: Callable[[str], Store]) -> None:
    """Chunks and manifests get their own storage class, and the encryption of the config with its key."""
    store = store_on("moto")
    bucket = store.bucket(
        sse="aws:kms", kms_key_id="alias/b2s", storage_class={"chunks": "GLACIER_IR", "manifests": "STANDARD_IA"}
    )
    upload_id, receipts, facts = store.put(bucket, KEY, segments_of(1000))
    assert bucket.complete_upload(KEY, upload_id, receipts, facts).storage_class == "GLACIER_IR"
    bucket.put_new(MANIFEST, b"{}")
    assert bucket.head(MANIFEST).storage_class == "STANDARD_IA"
    for key in (KEY, MANIFEST):
        found = store.server.client().head_object(Bucket=store.name, Key=key)
        assert (found["ServerSideEncryption"], found["SSEKMSKeyId"]) == ("aws:kms", "alias/b2s")
    store.bucket(sse="AES256").put_new(MANIFEST + "2", b"{}")
    found = store.server.client().head_object(Bucket=store.name, Key=MANIFEST + "2")
    assert found["ServerSideEncryption"] == "AES256"
