"""Fixtures of the S3 tests: one bucket on each real store, directly and behind the fault proxy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from b2s.adapters.s3 import Bucket
from b2s.core.model import Receipt, Sha256, StoreFacts
from b2s.core.store_settings import S3Settings
from b2s.errors import B2sError
from tests.parts.proxy import Exchange, FaultProxy
from tests.parts.servers import S3Server

PREFIX = "hosts/web1"
SEGMENT_BYTES = 5 << 20


@dataclass
class Segment:
    """Some bytes with the hashes an uploader has of them."""

    body: bytes | memoryview

    @property
    def sha256(self) -> Sha256:
        """Their SHA-256."""
        return Sha256(hashlib.sha256(self.body).digest())

    @property
    def md5(self) -> bytes:
        """Their MD5."""
        return hashlib.md5(self.body).digest()


@dataclass
class Store:
    """A bucket on a real server, our `Bucket` for it, and what it retried."""

    server: S3Server
    settings: S3Settings
    proxy: FaultProxy
    retries: list[B2sError] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    opened: list[Bucket] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The bucket's name."""
        return self.settings.bucket

    def bucket(self, **changes: Any) -> Bucket:
        """Connect to it through the proxy, with changed settings."""
        settings = S3Settings.model_validate({**self.settings.model_dump(), **changes})
        made = Bucket.connect(
            settings, on_retry=lambda error, *_: self.retries.append(error), on_bytes=self.moved.append
        )
        self.opened.append(made)
        return made

    def put(self, bucket: Bucket, key: str, segments: list[Segment]) -> tuple[str, tuple[Receipt, ...], StoreFacts]:
        """Upload segments as parts without completing."""
        facts = bucket.probe(f"{PREFIX}/data/chunks/probe")
        upload_id = bucket.create_upload(key)
        receipts = tuple(
            bucket.put_part(key, upload_id, number, memoryview(each.body), each.sha256, each.md5, facts)
            for number, each in enumerate(segments, start=1)
        )
        return upload_id, receipts, facts

    def stored(self, key: str) -> bytes:
        """Read an object past the proxy and past b2s."""
        return self.server.client().get_object(Bucket=self.name, Key=key)["Body"].read()

    def calls(self, operation: str, count: int, *, key: str = "") -> list[Exchange]:
        """Return the calls the proxy saw, which must be `count`."""
        found = self.proxy.history(operation, key=key)
        assert len(found) == count
        return found

    def remove(self) -> None:
        """Delete the bucket: every bucket takes SeaweedFS several volumes, which run out."""
        if self.server.name != "seaweed":
            return
        client = self.server.client()
        for each in client.list_multipart_uploads(Bucket=self.name).get("Uploads", []):
            client.abort_multipart_upload(Bucket=self.name, Key=each["Key"], UploadId=each["UploadId"])
        while found := client.list_objects_v2(Bucket=self.name).get("Contents", []):
            client.delete_objects(Bucket=self.name, Delete={"Objects": [{"Key": each["Key"]} for each in found]})
        client.delete_bucket(Bucket=self.name)


def segments_of(*sizes: int) -> list[Segment]:
    """Return segments of random bytes."""
    return [Segment(os.urandom(size)) for size in sizes]


@pytest.fixture
def store_on(
    request: pytest.FixtureRequest,
    aws_env: Callable[[S3Server], None],
    bucket_on: Callable[[S3Server], str],
    proxy: Callable[[S3Server], FaultProxy],
) -> Iterator[Callable[[str], Store]]:
    """Return a store by the name of its server fixture: ``store_on("seaweed")``."""
    made: list[Store] = []

    def make(name: str) -> Store:
        server: S3Server = request.getfixturevalue(name)
        aws_env(server)
        front = proxy(server)
        settings = S3Settings(
            bucket=bucket_on(server),
            prefix=PREFIX,
            endpoint_url=front.endpoint_url,
            retry_for=timedelta(seconds=20),
            connect_timeout=timedelta(seconds=5),
            read_timeout=timedelta(seconds=20),
        )
        made.append(Store(server, settings, front))
        return made[-1]

    yield make
    for store in made:
        for bucket in store.opened:
            bucket.close()
        store.remove()


@pytest.fixture(params=["seaweed", "rclone", "moto"])
def store(request: pytest.FixtureRequest, store_on: Callable[[str], Store]) -> Store:
    """Each of the three stores in turn."""
    return store_on(request.param)


@pytest.fixture(params=["seaweed", "rclone"])
def real_store(request: pytest.FixtureRequest, store_on: Callable[[str], Store]) -> Store:
    """The two stores that check what they receive."""
    return store_on(request.param)
