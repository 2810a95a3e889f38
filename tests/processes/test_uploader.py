"""What an uploader does with a segment that the chunker has hashed already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from b2s.adapters.s3 import Bucket
from b2s.adapters.spool import Spool
from b2s.core.messages import SegmentStored, StoreSegment
from b2s.core.model import Sha256, StoreFacts
from b2s.core.store_settings import S3Settings
from b2s.errors import SpoolDamaged
from b2s.processes import uploader
from scripts.bench.servers import Certificate, Profile, Sink

FACTS = StoreFacts(sha256=True, content_md5=True, etag_is_md5=True)
MD5_ONLY = StoreFacts(sha256=False, content_md5=True, etag_is_md5=True)
CONTENT = b"a segment"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Connect to a sink, which verifies the SHA-256 of what is as small as this."""
    with Sink(Profile("test", https=False, store=True), tmp_path / "sink", Certificate.make(tmp_path)) as sink:
        for name, value in sink.environment.items():
            monkeypatch.setenv(name, value)
        connected = Bucket.connect(S3Settings(bucket=sink.bucket, region="us-east-1", endpoint_url=sink.endpoint_url))
        yield connected
        connected.close()


def store(bucket: Bucket, spool: Spool, sha256: bytes | None, facts: StoreFacts = FACTS) -> object:
    """Store what lies in slot 0; `sha256` is what the chunker said."""
    upload_id = bucket.create_upload("p/key")
    known_hash = None if sha256 is None else Sha256(sha256)
    task = StoreSegment(0, 0, 0, len(CONTENT), "p/key", upload_id, None, known_hash)
    return uploader._do(task, bucket, spool, facts)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """Make a spool whose only slot holds `CONTENT`."""
    made = Spool.create(tmp_path / "spool", "uploader", 4096, {})
    made.allocate(0)
    made.slot(0)[: len(CONTENT)] = CONTENT
    yield made
    made.remove()


@pytest.mark.parametrize("facts", [FACTS, MD5_ONLY], ids=["sha256", "md5"])
@pytest.mark.parametrize("hashed_before", [False, True])
def test_receipt_has_the_hash_whoever_computed_it(
    bucket: Bucket, spool: Spool, hashed_before: bool, facts: StoreFacts
) -> None:
    """The store confirmed it in all cases."""
    digest = hashlib.sha256(CONTENT).digest()
    report = store(bucket, spool, digest if hashed_before else None, facts)
    assert isinstance(report, SegmentStored)
    assert report.receipt.sha256 == digest


@pytest.mark.parametrize("facts", [FACTS, MD5_ONLY], ids=["sha256", "md5"])
def test_spool_that_gives_back_other_bytes_than_were_read_is_noticed(
    bucket: Bucket, spool: Spool, facts: StoreFacts
) -> None:
    """D04: the chunker hashed what came out of the pipe; a bit that flips after that is never stored as a part.

    By a store that knows SHA-256, or by us: an MD5 of what the spool gives back would be right.
    """
    spool.slot(0)[3] ^= 1
    with pytest.raises(SpoolDamaged, match="other bytes"):
        store(bucket, spool, hashlib.sha256(CONTENT).digest(), facts)
