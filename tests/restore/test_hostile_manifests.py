"""H02, H03: manifests made to cost time or memory, or that belong elsewhere, met by the whole command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from b2s.core.layout import Layout
from b2s.core.limits import MANIFEST_BYTES_MAX
from b2s.core.manifest_codec import encode
from tests.format import sample
from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import S3Server, SeaweedServer
from tests.system.commands import Caller
from tests.unit.test_manifest_codec import HOSTILE

CPU_SECONDS_MAX = 2.0
MEMORY_BYTES_MAX = 200_000_000

# What `b2s` is, and then what it cost: the peak of this very process, as the kernel counted it.
MEASURED = """
import json, sys, time
from b2s.cli.main import run
begun = time.process_time()
code = run(sys.argv[1:])
cpu_seconds = time.process_time() - begun
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(json.dumps({"code": code, "cpu_seconds": cpu_seconds, "peak_bytes": int(peak) * 1024}))
"""


def largest() -> bytes:
    """A manifest of as many segments as the format allows, in order but for the source it names."""
    manifest, size = sample.full(), 8192 * sample.SEGMENT
    chunks = sample.sample_chunks(manifest.backup_id, (size,) * 128)
    return encode(replace(manifest, chunks=chunks, stream=replace(manifest.stream, bytes=128 * size)))


COSTLY: dict[str, Callable[[], bytes]] = {
    **{name: HOSTILE[name] for name in ("200 MB", "objects", "digits", "long list", "many lists", "almost a list")},
    "128 MiB of spaces": lambda: b" " * MANIFEST_BYTES_MAX,
    "a million segments of another source": largest,
}


@dataclass(frozen=True)
class Cost:
    """What a call said and took."""

    code: int
    cpu_seconds: float
    peak_bytes: int
    events: list[dict[str, object]]


@dataclass(frozen=True)
class Store:
    """A bucket into which anybody may put manifests, and a call that meets them."""

    server: S3Server
    bucket: str
    prefix: str
    caller: Caller
    target: Path

    def put(self, source: str, body: bytes, sequence: int = 1) -> None:
        """Put something under a manifest's key."""
        key = Layout(self.prefix, source).manifest_key(sequence)
        self.server.client().put_object(Bucket=self.bucket, Key=key, Body=body)

    def restore(self, source: str) -> Cost:
        """Restore it, measured."""
        where = ["--bucket", self.bucket, "--prefix", self.prefix, "--endpoint-url", self.server.endpoint_url]
        arguments = ["restore", *where, "--source", source, "--target", str(self.target)]
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *arguments],
            cwd="/",
            env=self.caller.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return Cost(**json.loads(done.stdout), events=[json.loads(line) for line in done.stderr.splitlines()])


@pytest.fixture
def store(
    seaweed: SeaweedServer,
    place_on: Callable[[S3Server], tuple[str, str]],
    tmp_path: Path,
    loopfs: Callable[..., LoopFilesystem],
) -> Iterator[Store]:
    """A place on SeaweedFS, empty again afterwards, and a target to restore to."""
    bucket, prefix = place_on(seaweed)
    yield Store(seaweed, bucket, prefix, Caller(tmp_path, seaweed), loopfs().path / "restored")
    for entry in seaweed.client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", []):
        seaweed.client().delete_object(Bucket=bucket, Key=entry["Key"])


@pytest.mark.parametrize("name", COSTLY)
def test_costly_manifests(store: Store, name: str) -> None:
    """H02: the command exits 4 within 2 s of CPU, and what it met costs it less than 200 MB; nothing is made."""
    store.put("small", b"{}")
    store.put("evil", COSTLY[name]())
    small, evil = store.restore("small"), store.restore("evil")
    assert (small.code, evil.code) == (4, 4)
    assert evil.cpu_seconds - small.cpu_seconds < CPU_SECONDS_MAX
    assert evil.peak_bytes - small.peak_bytes < MEMORY_BYTES_MAX
    last = evil.events[-1]
    assert (last["event"], last["exit_code"]) == ("run_finished", 4)
    assert str(last["error"]).isprintable()
    assert list(store.target.parent.iterdir()) == []


def test_manifests_of_elsewhere(store: Store) -> None:
    """H03: one of another source, or under another number, is exit 4 and named as what it is."""
    store.put("mine", encode(sample.full()))
    store.put("data", encode(sample.incremental()), sequence=7)
    for source, said in (("mine", "its key says 'mine'"), ("data", "its key says 7")):
        done = store.restore(source)
        assert done.code == 4
        assert said in str(done.events[-1]["error"])
    assert list(store.target.parent.iterdir()) == []
