"""The main job at the size of the bar: 3 GiB in 16 MiB segments and 256 MiB chunks, and memory that does not grow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from b2s.core.sizing import memory_bytes_max, spool_slots
from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import S3Server, SeaweedServer
from tests.parts.tree import change_tree, differences, nasty_tree, tree_digest
from tests.system.commands import Done
from tests.system.site import MIB, SOURCE, Site

GIB = 1024 * MIB
SEGMENT = 16 * MIB
CHUNK = 256 * MIB
CONCURRENCY = 4
STREAM_BYTES = 3 * GIB
TREE_BYTES_MAX = 300 * MIB  # the bar for all processes together, beside the spool
GROWTH_BYTES_MAX = 32 * MIB  # a stream three times as long: noise of sampling, and 1 KiB per segment
RUN_SECONDS_MAX = 900.0
SPOOL = spool_slots(on_disk=False, size_bytes=0, segment_size_bytes=SEGMENT, concurrency=CONCURRENCY)

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.fixture
def big_seaweed() -> Iterator[SeaweedServer]:
    """A server whose data is gone right after the test, because there is much of it."""
    server = SeaweedServer()
    yield server
    server.close()


def fill(directory: Path, size_bytes: int) -> None:
    """Put files of 64 MiB into the directory that have no two blocks in common."""
    directory.mkdir()
    for number in range(-(-size_bytes // (64 * MIB))):
        with (directory / f"file-{number:03}").open("wb") as file:
            for _ in range(64):
                file.write(os.urandom(MIB))


def assert_bounds(run: Done, stream_bytes_min: int) -> None:
    """Assert that the stream was as long as meant, and memory and spool as small as promised."""
    metrics = run.event("backup_metrics")
    assert metrics["total_bytes"] >= stream_bytes_min
    assert metrics["segments"] == -(-metrics["total_bytes"] // SEGMENT)
    assert metrics["chunks"] == -(-metrics["total_bytes"] // CHUNK)
    assert 0 < run.peak_spool_bytes <= metrics["peak_spool_bytes"] <= SPOOL.budget_bytes
    assert 0 < run.peak_pss_bytes < TREE_BYTES_MAX + SPOOL.budget_bytes
    assert run.peak_pss_bytes < memory_bytes_max(SPOOL, on_disk=False, segments=metrics["segments"])


def test_bar(
    big_seaweed: SeaweedServer,
    loopfs: Callable[..., LoopFilesystem],
    bucket_on: Callable[[S3Server], str],
    tmp_path: Path,
) -> None:
    """Full and incremental come back equal; memory stays under the bar, also for a stream three times as long."""
    sizes = {"segment_size": SEGMENT, "chunk_size": CHUNK, "concurrency": CONCURRENCY}
    bucket = bucket_on(big_seaweed)
    site = Site(tmp_path, big_seaweed, bucket, loopfs(size_bytes=20 * GIB), **sizes)
    nasty_tree(site.source, seed=1, size_bytes=64 * MIB)
    fill(site.source / "big", STREAM_BYTES)
    full = site.backup(sample_memory=True, seconds=RUN_SECONDS_MAX)
    assert_bounds(full, STREAM_BYTES)
    assert [event["process"] for event in full.events if event["event"] == "process_started"].count("uploader") == 4

    change_tree(site.source, seed=2)
    incremental = site.backup("--once", sample_memory=True, seconds=RUN_SECONDS_MAX)
    assert_bounds(incremental, 1)
    assert incremental.event("backup_metrics")["total_bytes"] < STREAM_BYTES // 4

    elsewhere = loopfs(size_bytes=6 * GIB).path
    target = elsewhere / "restored"
    words: tuple[str | Path, ...] = ("restore", *site.where(), "--source", SOURCE, "--target", target)
    restored = site.b2s.succeed(*words, seconds=RUN_SECONDS_MAX, sample_memory=True)
    assert differences(tree_digest(site.source), tree_digest(target)) == []
    assert 0 < restored.peak_spool_bytes <= restored.event("restore_metrics")["peak_spool_bytes"] <= SPOOL.budget_bytes
    assert restored.peak_pss_bytes < TREE_BYTES_MAX + SPOOL.budget_bytes

    fill(site.source / "bigger", 2 * STREAM_BYTES)
    thrice = site.backup("--full", sample_memory=True, seconds=RUN_SECONDS_MAX)
    assert_bounds(thrice, 3 * STREAM_BYTES)
    assert thrice.peak_pss_bytes < full.peak_pss_bytes + GROWTH_BYTES_MAX
    site.assert_clean()
    print(  # noqa: T201 - the measured figures, shown with -s
        *(f"{name}: {done.peak_pss_bytes / MIB:.0f} MiB" for name, done in (("full", full), ("thrice", thrice))),
        f"restore: {restored.peak_pss_bytes / MIB:.0f} MiB",
    )
