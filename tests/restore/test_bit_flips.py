"""Flipped bits: every one healed by another download, or refused before anyone used the bytes.

By default a seeded sample of a tenth. All thousand, and a hundred more through the processes of a restore:
`scripts/test tests/restore/test_bit_flips.py -m "long or not long"`.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from b2s.adapters.s3 import Bucket
from b2s.adapters.spool import Spool
from b2s.core.fetch_board import StoredSegment, segments_of
from b2s.core.manifest import Manifest
from b2s.core.manifest_codec import decode
from b2s.core.messages import FetchSegment
from b2s.core.model import Sha256
from b2s.core.settings import LogSettings
from b2s.core.store_settings import S3Settings
from b2s.errors import B2sError, ChunkDamaged, ChunkMissing, ManifestDamaged, StreamRefused
from b2s.processes.child import ChildBoot
from b2s.processes.downloader import DOWNLOADS_PER_SEGMENT_MAX, fetch
from b2s.processes.signals import StopRequest
from b2s.restore import pipeline
from b2s.restore.pipeline import DownloadPlan, StreamDownloads
from tests.parts.faults import FlipDown
from tests.parts.proxy import FaultProxy
from tests.parts.servers import S3Server, SeaweedServer
from tests.restore.conftest import Origin, Recorder

SEGMENT_BYTES = 50_000
SEGMENTS = 10


def flips(in_full: int) -> pytest.MarkDecorator:
    """Run a test with a tenth of the flips, and with all of them where there is time."""
    whole = pytest.param(in_full, marks=[pytest.mark.long, pytest.mark.timeout(900)])
    return pytest.mark.parametrize("count", [in_full // 10, whole])


@dataclass
class Stored:
    """One object of random bytes, a way to fetch its segments through a proxy, and the slot they land in."""

    server: S3Server
    front: FaultProxy
    bucket: Bucket
    spool: Spool
    key: str
    content: bytes
    etag: str
    retried: list[B2sError] = field(default_factory=list)

    def task(self, number: int) -> FetchSegment:
        """Return what the supervisor would ask for."""
        offset = number * SEGMENT_BYTES
        part = self.content[offset : offset + SEGMENT_BYTES]
        return FetchSegment(number, 0, self.key, self.etag, offset, len(part), Sha256(hashlib.sha256(part).digest()))

    def fetch(self, number: int) -> bytes:
        """Fetch a segment as a downloader does and return what is in the slot."""
        task = self.task(number)
        fetch(task, self.bucket, self.spool, lambda error, attempt, wait: self.retried.append(error))
        return bytes(self.spool.slot(0)[: task.bytes])

    def put(self, content: bytes) -> None:
        """Store other bytes in its place; later tasks expect that object."""
        reply = self.server.client().put_object(Bucket=self.bucket.settings.bucket, Key=self.key, Body=content)
        self.etag = reply["ETag"].strip('"')


@pytest.fixture
def stored(
    seaweed: SeaweedServer,
    aws_env: Callable[[S3Server], None],
    bucket_on: Callable[[S3Server], str],
    proxy: Callable[[S3Server], FaultProxy],
    tmp_path: Path,
) -> Iterator[Stored]:
    """An object of ten segments on SeaweedFS behind a proxy."""
    aws_env(seaweed)
    front = proxy(seaweed)
    settings = S3Settings(
        bucket=bucket_on(seaweed), endpoint_url=front.endpoint_url, region="us-east-1", retry_for=timedelta(seconds=5)
    )
    spool = Spool.create(tmp_path / "spool", "flips", SEGMENT_BYTES, {})
    spool.allocate(0)
    bucket = Bucket.connect(settings)
    content = random.Random(5).randbytes(SEGMENT_BYTES * SEGMENTS)
    made = Stored(seaweed, front, bucket, spool, "flipped", content, "")
    made.put(content)
    yield made
    bucket.close()


@flips(400)
def test_flips_in_flight_heal(stored: Stored, count: int) -> None:
    """Downloads, each with one bit flipped on its way: each is done again and then right."""
    dice = random.Random(1)
    for _ in range(count):
        number = dice.randrange(SEGMENTS)
        rule = stored.front.rule("GetObject", FlipDown(dice.randrange(SEGMENT_BYTES), dice.randrange(8)))
        expected = stored.content[number * SEGMENT_BYTES : (number + 1) * SEGMENT_BYTES]
        assert stored.fetch(number) == expected
        assert rule.hits == 1
        stored.front.clear()
    assert len(stored.retried) == count


@flips(200)
def test_flips_in_the_store_are_refused(stored: Stored, count: int) -> None:
    """Objects with one bit flipped where they lie: refused under their key, the other segments are still right."""
    dice = random.Random(2)
    for _ in range(count):
        place = dice.randrange(len(stored.content))
        damaged = bytearray(stored.content)
        damaged[place] ^= 1 << dice.randrange(8)
        stored.put(bytes(damaged))
        stored.retried.clear()
        with pytest.raises(ChunkDamaged, match="flipped"):
            stored.fetch(place // SEGMENT_BYTES)
        assert len(stored.retried) == DOWNLOADS_PER_SEGMENT_MAX - 1
        other = (place // SEGMENT_BYTES + 1) % SEGMENTS
        assert stored.fetch(other) == stored.content[other * SEGMENT_BYTES : (other + 1) * SEGMENT_BYTES]


def test_object_that_goes_away_or_shrinks(stored: Stored) -> None:
    """An object that is replaced, cut or deleted under way is refused by name."""
    task = stored.etag
    stored.put(b"other" * 1000)
    new, stored.etag = stored.etag, task
    with pytest.raises(ChunkDamaged, match="replaced"):
        stored.fetch(0)
    stored.etag = new
    with pytest.raises(ChunkDamaged):
        stored.fetch(SEGMENTS - 1)
    stored.server.client().delete_object(Bucket=stored.bucket.settings.bucket, Key=stored.key)
    with pytest.raises(ChunkMissing, match="gone"):
        stored.fetch(0)


@flips(100)
def test_flips_never_reach_the_reader(stored: Stored, tmp_path: Path, count: int) -> None:
    """Through all processes of a restore: what reads in the place of `btrfs receive` gets right bytes or none (I5).

    Every second bit flips each time: then the reader has at most what comes before its segment.
    """
    dice = random.Random(4)
    for number in range(count):
        always = number % 2 == 1
        segment, flip = dice.randrange(SEGMENTS), FlipDown(dice.randrange(SEGMENT_BYTES), dice.randrange(8))
        rule = stored.front.rule("GetObject", flip, key=f"segment-{segment}", times=None if always else 1)
        out = tmp_path / f"out-{number}"
        try:
            feed_segments(stored, out)
        except ChunkDamaged as error:
            refused = error.message
        else:
            refused = ""
        assert (f"segment-{segment} " in refused) is always
        got = out.read_bytes() if out.exists() else b""
        assert got == stored.content[: len(got)]
        assert len(got) <= segment * SEGMENT_BYTES if always else got == stored.content
        assert rule.hits == (DOWNLOADS_PER_SEGMENT_MAX if always else 1)
        stored.front.clear()


@pytest.mark.timeout(60)
def test_reader_that_ends_and_leaves_its_pipe_to_somebody_else(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper in the place of `btrfs receive`: it exited 0, nobody reads, and nothing will ever come of waiting."""
    monkeypatch.setattr(pipeline, "RECEIVE_DYING_SECONDS_MAX", 0.5)
    left = tmp_path / "left"
    wrapper = f"exec 3<&0 >/dev/null 2>&1; sleep 600 <&3 & echo $! >{left}; exit 0"
    try:
        with pytest.raises(StreamRefused, match="exit status 0 before the end"):
            feed_segments(stored, tmp_path / "out", ["sh", "-c", wrapper])
    finally:
        os.kill(int(left.read_text()), signal.SIGKILL)


def feed_segments(stored: Stored, out: Path, reader: list[str] | None = None) -> None:
    """Feed the content to `cp`, each segment from an object of its own, by the processes of a restore."""
    client, bucket = stored.server.client(), stored.bucket.settings.bucket
    segments: list[StoredSegment] = []
    for number in range(SEGMENTS):
        part = stored.content[number * SEGMENT_BYTES : (number + 1) * SEGMENT_BYTES]
        etag = client.put_object(Bucket=bucket, Key=f"segment-{number}", Body=part)["ETag"].strip('"')
        digest = Sha256(hashlib.sha256(part).digest())
        segments.append(StoredSegment(number, f"segment-{number}", etag, 0, len(part), digest))
    plan = DownloadPlan(stored.bucket.settings, 2, out.parent, SEGMENT_BYTES, SEGMENTS)
    boot = ChildBoot(out.name, "supervisor", LogSettings(level="error", format="json"))
    with StreamDownloads(plan, boot, {}, StopRequest(), Recorder(), lambda pid, process: None) as downloads:
        downloads.feed(iter(segments), reader or ["cp", "/dev/stdin", str(out)], inspect=lambda first: None)


@flips(400)
def test_flips_in_manifests_change_nothing_that_is_restored(
    make_origin: Callable[..., Origin], seaweed: SeaweedServer, count: int
) -> None:
    """Each flipped bit is refused, or what remains names the same bytes of the same chunks."""
    uploader = make_origin(seaweed).uploader
    body = uploader.client.get_object(Bucket=uploader.bucket, Key=uploader.layout.manifest_key(1))["Body"].read()
    whole = decode(body, key_sequence=1, source="data")
    dice = random.Random(3)
    refused = 0
    for _ in range(count):
        damaged = bytearray(body)
        damaged[dice.randrange(len(body))] ^= 1 << dice.randrange(8)
        try:
            read = decode(bytes(damaged), key_sequence=1, source="data")
        except ManifestDamaged:
            refused += 1
            continue
        assert restored_by(read) == restored_by(whole)
    assert refused > count // 2


def restored_by(manifest: Manifest) -> object:
    """Return all that decides which bytes reach `btrfs receive`."""
    segments = list(segments_of(manifest, [(chunk.key, "") for chunk in manifest.chunks]))
    return manifest.backup_id, manifest.kind, manifest.send_parent, segments
