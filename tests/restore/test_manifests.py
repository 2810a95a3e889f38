"""The manifests of a source as a restore reads them: one LIST, each content once, and what becomes of bad ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest

from b2s.adapters.s3 import Bucket
from b2s.core import limits
from b2s.core.chain import Broken, Stored
from b2s.core.layout import Layout
from b2s.core.manifest_codec import encode
from b2s.core.settings import S3Settings
from b2s.errors import AccessDenied, ManifestDamaged, ManifestMissing, StoreRefused
from b2s.restore import manifests
from b2s.restore.manifests import SourceManifests
from tests.format import sample
from tests.parts.faults import FlipDown, Respond
from tests.parts.proxy import FaultProxy
from tests.parts.servers import S3Server, SeaweedServer
from tests.parts.workspace import poll


@dataclass(frozen=True)
class Place:
    """Where the manifests 1, 2 and a broken 3 lie, and things that are none."""

    bucket: str
    layout: Layout


@pytest.fixture
def place(seaweed: SeaweedServer, place_on: Callable[[S3Server], tuple[str, str]]) -> Place:
    """Such a place."""
    name, prefix = place_on(seaweed)
    layout, client = Layout(prefix, "data"), seaweed.client()
    bodies = {1: encode(sample.full()), 2: encode(sample.incremental()), 3: b"{}"}
    for sequence, body in bodies.items():
        client.put_object(Bucket=name, Key=layout.manifest_key(sequence), Body=body)
    for other in ("4.json", "00000005.txt", "x/00000006.json"):
        client.put_object(Bucket=name, Key=layout.manifests_prefix + other, Body=b"{}")
    return Place(name, layout)


@pytest.fixture
def front(seaweed: SeaweedServer, proxy: Callable[[S3Server], FaultProxy]) -> FaultProxy:
    """A proxy before it."""
    return proxy(seaweed)


@pytest.fixture
def bucket(place: Place, front: FaultProxy) -> Iterator[Bucket]:
    """A connection to it."""
    settings = S3Settings(
        bucket=place.bucket, endpoint_url=front.endpoint_url, region="us-east-1", retry_for=timedelta(seconds=5)
    )
    connected = Bucket.connect(settings)
    yield connected
    connected.close()


def test_each_is_read_once_when_it_is_needed(bucket: Bucket, place: Place, front: FaultProxy) -> None:
    """One LIST, and a GET for each that is looked at; keys that are not ours are not there."""
    world = SourceManifests(bucket, place.layout)
    assert (list(world), len(world)) == ([1, 2, 3], 3)
    assert isinstance(world[1], Stored)
    assert world.stored(1) is world[1]
    poll(lambda: not front.in_flight(), seconds=10, what="the last call")
    assert [call.operation for call in front.history()] == ["ListObjectsV2", "GetObject"]
    with pytest.raises(KeyError):
        world[4]


def test_broken_one_is_kept_without_its_bytes(bucket: Bucket, place: Place) -> None:
    """A manifest that cannot be read says why, each time; nothing holds on to what was read of it."""
    world = SourceManifests(bucket, place.layout)
    broken = world[3]
    assert isinstance(broken, Broken)
    error = broken.error
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    assert error.context["finding"] == "manifest_damaged"
    for _ in range(2):
        with pytest.raises(ManifestDamaged):
            world.stored(3)


@pytest.mark.parametrize("offset", [0, 5, 300, 700])
def test_bit_flipped_on_its_way_heals(bucket: Bucket, place: Place, front: FaultProxy, offset: int) -> None:
    """S06: a manifest that arrives wrong once is read again; whatever the bit is, the true one comes out."""
    true = SourceManifests(bucket, place.layout).stored(2)
    rule = front.rule("GetObject", FlipDown(offset, 1))
    assert SourceManifests(bucket, place.layout).stored(2) == true
    assert rule.hits == 1


def test_bit_that_always_flips_is_damage(bucket: Bucket, place: Place, front: FaultProxy) -> None:
    """S06: what arrives wrong each time is taken for stored so, and refused."""
    rule = front.rule("GetObject", FlipDown(0, 1), times=None)
    with pytest.raises(ManifestDamaged):
        SourceManifests(bucket, place.layout).stored(2)
    assert rule.hits == 2


def test_gone_between_list_and_get(bucket: Bucket, seaweed: SeaweedServer, place: Place) -> None:
    """A manifest that was listed and is not there any more is missing."""
    world = SourceManifests(bucket, place.layout)
    assert len(world) == 3
    seaweed.client().delete_object(Bucket=place.bucket, Key=place.layout.manifest_key(2))
    with pytest.raises(ManifestMissing, match="a moment ago"):
        world.stored(2)


def test_refusal_of_the_store_is_no_damage(bucket: Bucket, place: Place, front: FaultProxy) -> None:
    """What may not be read is not called damaged."""
    front.rule("GetObject", Respond(403, "AccessDenied"), times=None)
    with pytest.raises(AccessDenied):
        SourceManifests(bucket, place.layout)[1]
    front.clear()
    front.rule("GetObject", Respond(400, "InvalidRequest"), times=None)
    with pytest.raises(StoreRefused):
        SourceManifests(bucket, place.layout)[1]


def test_too_many_are_refused(bucket: Bucket, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """H05: a store that lists manifests without end is not believed."""
    assert limits.BACKUPS_PER_SOURCE_MAX == 1_000_000
    monkeypatch.setattr(manifests, "BACKUPS_PER_SOURCE_MAX", 2)
    with pytest.raises(StoreRefused, match="more than 2 manifests"):
        len(SourceManifests(bucket, place.layout))
