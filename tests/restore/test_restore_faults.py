"""Restores that are killed, starved and lied to: healed, or refused with nothing left behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest

from b2s.errors import ChunkDamaged, ReceiveFailed, Stopped, WorkerFailed
from b2s.processes.child import process_context
from b2s.restore.compare import Depth
from b2s.restore.points import Wanted
from tests.parts import invariants
from tests.parts.faults import FlipDown, ResetDown, Respond
from tests.parts.loopfs import LoopFilesystem
from tests.parts.proxy import FaultProxy
from tests.parts.servers import S3Server, SeaweedServer
from tests.parts.tree import differences, tree_digest
from tests.parts.workspace import poll
from tests.restore.conftest import Origin, Restorer

Filesystems = Callable[..., LoopFilesystem]
MakeOrigin = Callable[..., Origin]
MakeProxy = Callable[[S3Server], FaultProxy]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Every test here ends without a process or a spool that was not there before; the forkserver lives on."""
    process_context()
    forkserver.ensure_running()
    before = invariants.observe()
    yield
    invariants.no_leftovers(before)


def partial_subvolume(directory: Path) -> bool:
    """Tell whether a receive has begun to make its subvolume."""
    return any(directory.glob(".b2s-staging-*/received/*"))


def when_receiving(restore: Restorer, directory: Path, act: Callable[[int], None]) -> None:
    """Have `act` called with the pid of `btrfs receive` once its subvolume appears."""

    def watch(pid: int) -> None:
        poll(lambda: partial_subvolume(directory), seconds=30, what="a partial subvolume")
        act(pid)

    def on_child(pid: int, process: str) -> None:
        if process == "btrfs":
            threading.Thread(target=watch, args=(pid,), daemon=True).start()

    restore.on_child = on_child


def test_killed_receive_leaves_nothing_and_repeats(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, proxy: MakeProxy
) -> None:
    """K11: SIGKILL of `btrfs receive` is named, its partial subvolume is gone, the rest is untouched."""
    origin = make_origin(seaweed)
    slow = proxy(seaweed)
    slow.bytes_per_second = 4e6
    elsewhere = loopfs()
    (elsewhere.path / "mine").write_text("mine")
    restore = origin.restorer(slow.endpoint_url)
    when_receiving(restore, elsewhere.path, lambda pid: os.kill(pid, signal.SIGKILL))
    with pytest.raises(ReceiveFailed, match="SIGKILL"):
        restore(elsewhere.path / "restored")
    assert [path.name for path in elsewhere.path.iterdir()] == ["mine"]
    assert restore.log.named("receive_failed")
    assert restore.log.named("restore_failed")
    origin.restorer()(elsewhere.path / "restored")
    assert differences(tree_digest(origin.snapshots[0]), tree_digest(elsewhere.path / "restored")) == []


def test_failure_in_the_chain_keeps_what_was_whole(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, proxy: MakeProxy
) -> None:
    """A chunk that cannot be read fails the restore; repeated, it begins with the member that failed."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    newest = origin.change_and_back_up()
    broken = proxy(seaweed)
    broken.rule("GetObject", Respond(403, "AccessDenied"), key=origin.uploader.stored[1].manifest.backup_id, times=None)
    elsewhere = loopfs()
    restore = origin.restorer(broken.endpoint_url)
    with pytest.raises(Exception, match="GetObject"):
        restore(elsewhere.path / "restored")
    assert [path.name for path in elsewhere.path.iterdir()] == [".b2s-received"]
    broken.clear()
    restored = restore(elsewhere.path / "restored")
    assert (restored.received_backups, restored.reused_backups) == (1, 1)
    assert differences(tree_digest(newest), tree_digest(elsewhere.path / "restored")) == []


def test_killed_downloaders_are_replaced(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, proxy: MakeProxy
) -> None:
    """Each of the first four downloaders is killed while it works; the restore still comes out equal."""
    origin = make_origin(seaweed)
    slow = proxy(seaweed)
    slow.bytes_per_second = 8e6
    elsewhere = loopfs()
    restore = origin.restorer(slow.endpoint_url)
    killed: list[int] = []

    def kill(pid: int) -> None:
        poll(lambda: bool(slow.in_flight("GetObject")) or not psutil.pid_exists(pid), seconds=30, what="a download")
        os.kill(pid, signal.SIGKILL)

    def on_child(pid: int, process: str) -> None:
        if process == "downloader" and len(killed) < 4:
            killed.append(pid)
            threading.Thread(target=kill, args=(pid,), daemon=True).start()

    restore.on_child = on_child
    restore(elsewhere.path / "restored", depth=Depth.NONE)
    assert len(restore.log.named("downloader_died")) >= 4
    assert differences(tree_digest(origin.snapshots[0]), tree_digest(elsewhere.path / "restored")) == []


def test_killed_feeder_fails_cleanly(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, proxy: MakeProxy
) -> None:
    """SIGKILL of the feeder ends the restore with an error, and `btrfs receive` with it."""
    origin = make_origin(seaweed)
    slow = proxy(seaweed)
    slow.bytes_per_second = 4e6
    elsewhere = loopfs()
    restore = origin.restorer(slow.endpoint_url)

    def kill(_pid: int) -> None:
        os.kill(next(pid for pid, process in restore.children if process == "feeder"), signal.SIGKILL)

    when_receiving(restore, elsewhere.path, kill)
    with pytest.raises((WorkerFailed, ReceiveFailed)):
        restore(elsewhere.path / "restored")
    assert list(elsewhere.path.iterdir()) == []


def test_stop_request_ends_it_and_it_repeats(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, proxy: MakeProxy
) -> None:
    """A stop signal in mid-receive ends everything within seconds and leaves nothing."""
    origin = make_origin(seaweed)
    slow = proxy(seaweed)
    slow.bytes_per_second = 1e6
    elsewhere = loopfs()
    restore = origin.restorer(slow.endpoint_url)
    when_receiving(restore, elsewhere.path, lambda pid: restore.stop._record(signal.SIGTERM, None))
    with pytest.raises(Stopped):
        restore(elsewhere.path / "restored")
    assert list(elsewhere.path.iterdir()) == []


def test_bits_flipped_in_flight_heal(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, proxy: MakeProxy
) -> None:
    """S06: one flipped bit in each of several bodies, resets and a truncation cost retries and nothing else."""
    origin = make_origin(seaweed)
    lying = proxy(seaweed)
    for offset in (0, 123_456, 2_000_000):
        lying.rule("GetObject", FlipDown(offset, offset % 8), key="chunks/")
    lying.rule("GetObject", ResetDown(2_000_000), key="chunks/")
    lying.rule("GetObject", Respond(503, "SlowDown"), key="chunks/")
    elsewhere = loopfs()
    restore = origin.restorer(lying.endpoint_url)
    restore(elsewhere.path / "restored", depth=Depth.NONE)
    assert differences(tree_digest(origin.snapshots[0]), tree_digest(elsewhere.path / "restored")) == []
    (metrics,) = restore.log.named("restore_metrics")
    assert metrics["retries"] >= 4


def test_segment_that_is_always_wrong_is_refused(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, proxy: MakeProxy
) -> None:
    """S06: a bit that flips every time is exit 4, naming the key, and nothing appears."""
    origin = make_origin(seaweed)
    key = origin.uploader.chunk_keys()[-1]
    lying = proxy(seaweed)
    lying.rule("GetObject", FlipDown(1000, 3), key=key, times=None)
    elsewhere = loopfs()
    with pytest.raises(ChunkDamaged, match="SHA-256") as caught:
        origin.restorer(lying.endpoint_url)(elsewhere.path / "restored")
    assert caught.value.exit_code == 4
    assert key in caught.value.message
    assert list(elsewhere.path.iterdir()) == []


def test_object_replaced_between_ranges(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, proxy: MakeProxy
) -> None:
    """S06: an object that another one takes the place of is refused by its ETag, also when it is as long."""
    origin = make_origin(seaweed, size_bytes=40 << 20)
    uploader = origin.uploader
    key = uploader.chunk_keys()[-1]
    slow = proxy(seaweed)
    slow.bytes_per_second = 4e6
    elsewhere = loopfs()
    restore = origin.restorer(slow.endpoint_url, concurrency=1)

    def replace_it(_pid: int) -> None:
        size = uploader.stored[0].manifest.chunks[-1].bytes
        uploader.client.put_object(Bucket=uploader.bucket, Key=key, Body=b"x" * size)

    when_receiving(restore, elsewhere.path, replace_it)
    with pytest.raises(ChunkDamaged, match="replaced"):
        restore(elsewhere.path / "restored")
    assert list(elsewhere.path.iterdir()) == []


def test_full_target_filesystem(make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems) -> None:
    """B06: ENOSPC in `btrfs receive` is said with a cure, and what it wrote is gone."""
    origin = make_origin(seaweed, size_bytes=120 << 20)
    small = loopfs(size_bytes=128 << 20)
    with pytest.raises(ReceiveFailed) as caught:
        origin.restorer()(small.path / "restored")
    assert "full" in (caught.value.hint or "")
    assert "No space left" in caught.value.context["receive_stderr"]
    assert list(small.path.iterdir()) == []


def test_leftovers_of_a_dead_restore_are_removed(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems
) -> None:
    """A staging directory whose owner is gone goes with its partial subvolume; a living one's stays."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    elsewhere = loopfs()
    for name, pid in (("dead", 2**22 + 1), ("alive", os.getpid())):
        staging = elsewhere.path / f".b2s-staging-{name}"
        (staging / "received").mkdir(mode=0o700, parents=True)
        staging.chmod(0o700)
        created = psutil.Process().create_time()
        (staging / "owner.json").write_text(f'{{"pid": {pid}, "create_time": {created}}}')
        elsewhere.subvolume(f".b2s-staging-{name}/received/partial")
    other = elsewhere.path / ".b2s-staging-foreign"
    other.mkdir(mode=0o755)
    restore = origin.restorer()
    with pytest.raises(AssertionError, match="alive"):  # the restorer's own check sees the living one's
        restore(elsewhere.path / "restored", depth=Depth.NONE, wanted=Wanted())
    assert (elsewhere.path / "restored").is_dir()
    assert not (elsewhere.path / ".b2s-staging-dead").exists()
    assert (elsewhere.path / ".b2s-staging-alive" / "received" / "partial").is_dir()
    assert other.is_dir()
    (removed,) = [event for event in restore.log.named("orphan_removed") if event["what"] == "staging directory"]
    assert removed["path"].endswith("dead")
