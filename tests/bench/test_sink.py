"""The sink behaves like S3 where b2s looks, and verifies what the probe sends."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from b2s.adapters.s3 import Bucket
from b2s.core.limits import MIB
from b2s.core.model import Receipt, StoreFacts
from b2s.core.store_settings import S3Settings
from b2s.errors import ChunkDamaged, KeyTaken, ObjectMissing, PartRejected, UploadGone
from scripts.bench.servers import Certificate, Profile, Sink

FACTS = StoreFacts(sha256=True, content_md5=True, etag_is_md5=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Make one certificate for all tests."""
    return Certificate.make(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(params=["http", "https"])
def bucket(
    request: pytest.FixtureRequest, certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    """Connect to a sink that stores."""
    with Sink(Profile("test", https=request.param == "https", store=True), tmp_path, certificate) as sink:
        for name, value in sink.environment.items():
            monkeypatch.setenv(name, value)
        connected = Bucket.connect(S3Settings(bucket=sink.bucket, region="us-east-1", endpoint_url=sink.endpoint_url))
        yield connected
        connected.close()


def _upload(bucket: Bucket, key: str, bodies: list[bytes]) -> tuple[Receipt, ...]:
    upload_id = bucket.create_upload(key)
    receipts = tuple(
        bucket.put_part(key, upload_id, number, memoryview(body), hashlib.sha256(body).digest(), None, FACTS)
        for number, body in enumerate(bodies, start=1)
    )
    bucket.complete_upload(key, upload_id, receipts, FACTS)
    return receipts


def test_probe_finds_a_store_that_verifies(bucket: Bucket) -> None:
    """The probe believes that the sink verifies SHA-256 and MD5, because it does so for small bodies."""
    bucket.check()
    assert bucket.probe("p/probe") == FACTS
    assert bucket.list_uploads("p/") == []


def test_probe_tells_how_far_the_store_is(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round trip of a far store is in every answer, and so in the fastest."""
    with Sink(Profile("far", https=False, latency_ms=40.0, store=True), tmp_path, certificate) as sink:
        for name, value in sink.environment.items():
            monkeypatch.setenv(name, value)
        bucket = Bucket.connect(S3Settings(bucket=sink.bucket, region="us-east-1", endpoint_url=sink.endpoint_url))
        assert 0.04 <= bucket.probe("p/probe").round_trip_seconds < math.inf
        bucket.close()


def test_wrong_small_part_is_refused(bucket: Bucket) -> None:
    """A small part with another SHA-256 than declared is refused every time."""
    upload_id = bucket.create_upload("p/key")
    with pytest.raises(PartRejected):
        bucket.put_part("p/key", upload_id, 1, memoryview(b"body"), bytes(32), None, FACTS)


def test_stored_object_comes_back(bucket: Bucket) -> None:
    """What went up in parts comes down by ranges across them, and HEAD has the composite like AWS."""
    content = random.Random(1).randbytes(12 * MIB + 345)
    bodies = [content[start : start + 5 * MIB] for start in range(0, len(content), 5 * MIB)]
    receipts = _upload(bucket, "p/key", bodies)
    head = bucket.head("p/key")
    assert head.bytes == len(content)
    assert head.sha256_composite is not None
    assert head.sha256_composite.endswith(f"-{len(receipts)}")
    for first, size in ((0, len(content)), (5 * MIB - 3, 7), (4 * MIB, 8 * MIB), (len(content) - 1, 1)):
        room = memoryview(bytearray(size))
        bucket.get_range("p/key", head.etag, first, room)
        assert room == content[first : first + size]
    with pytest.raises(ChunkDamaged):
        bucket.get_range("p/key", head.etag, len(content) - 1, memoryview(bytearray(2)))


def test_parts_and_uploads_are_listed_page_by_page(bucket: Bucket) -> None:
    """More than a page of parts, uploads and objects are all listed, in order."""
    upload_id = bucket.create_upload("p/many")
    digest = hashlib.sha256(b"x").digest()
    for number in range(1, 1004):
        bucket.put_part("p/many", upload_id, number, memoryview(b"x"), digest, None, FACTS)
    parts = bucket.list_parts("p/many", upload_id)
    assert [part.part_number for part in parts] == list(range(1, 1004))
    assert {part.sha256 for part in parts} == {digest}
    bucket.abort_upload("p/many", upload_id)
    with pytest.raises(UploadGone):
        bucket.list_parts("p/many", upload_id)
    for number in range(3):
        bucket.put_new(f"p/{number}", b"body")
    assert [entry.key for entry in bucket.list_objects("p/", "p/0")] == ["p/1", "p/2"]
    with pytest.raises(ObjectMissing):
        bucket.head("p/many")


def test_key_is_written_once(bucket: Bucket) -> None:
    """`If-None-Match: *` has one winner; the same bytes again are no error."""
    bucket.put_new("p/manifest", b"first")
    bucket.put_new("p/manifest", b"first")
    with pytest.raises(KeyTaken):
        bucket.put_new("p/manifest", b"second")
    assert bucket.get("p/manifest", 100) == b"first"


def test_discarding_sink_keeps_books(certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `store` the bytes of large parts are gone, but sizes and checksums are right."""
    with Sink(Profile("test", https=False), tmp_path, certificate) as sink:
        for name, value in sink.environment.items():
            monkeypatch.setenv(name, value)
        bucket = Bucket.connect(S3Settings(bucket=sink.bucket, region="us-east-1", endpoint_url=sink.endpoint_url))
        _upload(bucket, "p/key", [bytes(5 * MIB), bytes(100_000)])
        assert bucket.head("p/key").bytes == 5 * MIB + 100_000
        bucket.close()
        assert sink.keys("p/") == ["p/key"]
        sink.forget("p/")
        assert sink.keys("p/") == []
