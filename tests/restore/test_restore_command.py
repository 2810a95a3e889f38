"""`b2s restore` and `b2s verify` as commands: exit codes, what they say, and being killed from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from b2s.adapters import spool
from tests.parts import invariants
from tests.parts.faults import Hold
from tests.parts.loopfs import LoopFilesystem
from tests.parts.proxy import FaultProxy
from tests.parts.servers import CANARY_SECRET, MotoServer, S3Server, SeaweedServer
from tests.parts.tree import differences, tree_digest
from tests.parts.workspace import poll
from tests.restore.conftest import Origin
from tests.system import terminal
from tests.system.commands import Caller

TREE_BYTES_MAX = 300 << 20  # for all processes together, beside the spool

MakeOrigin = Callable[..., Origin]
Filesystems = Callable[..., LoopFilesystem]
MakeProxy = Callable[[S3Server], FaultProxy]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Every command here ends without a process or a spool of its own left."""
    before = invariants.observe()
    yield
    invariants.no_leftovers(before)


def where(origin: Origin, endpoint_url: str = "") -> list[str]:
    """Return the options that name the bucket."""
    endpoint_url = endpoint_url or origin.uploader.server.endpoint_url
    return ["--bucket", "b2s-restore", "--prefix", origin.uploader.prefix, "--endpoint-url", endpoint_url]


def restore_command(origin: Origin, target: Path, endpoint_url: str = "", *options: str) -> list[str]:
    """Return the arguments of a restore."""
    return ["restore", *where(origin, endpoint_url), "--source", "data", "--target", str(target), *options]


def started(caller: Caller, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start b2s and return at once."""
    return subprocess.Popen(
        [sys.executable, "-m", "b2s", *arguments],
        cwd="/",
        env=caller.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_restore_says_what_it_did(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, tmp_path: Path
) -> None:
    """Exit 0, events on stderr, one result on stdout, no secret anywhere."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    caller, elsewhere = Caller(tmp_path, seaweed), loopfs()
    done = caller.succeed(*restore_command(origin, elsewhere.path / "restored"))
    assert "content equal" in done.stdout
    assert differences(tree_digest(origin.snapshots[0]), tree_digest(elsewhere.path / "restored")) == []
    assert done.events[0]["event"] == "run_started"
    assert (done.last["event"], done.last["exit_code"]) == ("run_finished", 0)
    assert {event["process"] for event in done.events if event["event"] == "process_started"} == {
        "downloader",
        "feeder",
        "btrfs",
    }
    assert done.event("restore_metrics")["source"] == "data"
    again = caller.call(*restore_command(origin, elsewhere.path / "restored"))
    assert again.exit_code == 2
    assert again.last["hint"]
    invariants.assert_no_secret(CANARY_SECRET, caller.said)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--at", "1999-01-01"), 4),
        (("--at", "not-a-time"), 2),
        (("--backup", "20200101T000000Z-full-00000000"), 4),
        (("--at", "2030-01-01", "--backup", "x"), 2),
        (("--timeout", "soon"), 2),
        (("--tier", "Warm"), 2),
    ],
)
def test_wrong_requests(
    make_origin: MakeOrigin,
    seaweed: SeaweedServer,
    loopfs: Filesystems,
    tmp_path: Path,
    options: tuple[str, ...],
    code: int,
) -> None:
    """What cannot be is refused with its exit code and leaves nothing."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    elsewhere = loopfs()
    done = Caller(tmp_path, seaweed).call(*restore_command(origin, elsewhere.path / "restored", "", *options))
    assert done.exit_code == code
    assert done.last["exit_code"] == code
    assert list(elsewhere.path.iterdir()) == []


@pytest.mark.parametrize("verify", ["none", "sample", "full"])
def test_it_says_what_was_verified(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, tmp_path: Path, verify: str
) -> None:
    """With the sent snapshot on this host, without it, and not at all: text and result tell which it was."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    elsewhere, caller = loopfs(), Caller(tmp_path, seaweed)
    for here in (True, False):
        if not here:
            origin.filesystem.close()
        target = elsewhere.path / f"restored-{here}"
        done = caller.succeed(*restore_command(origin, target, "", "--verify", verify, "--keep", "none"))
        expected = "nothing" if verify == "none" else "content" if here else "manifest"
        words = {"nothing": "not compared", "content": "content equal", "manifest": "agree with the manifest"}
        assert words[expected] in done.stdout
        (result,) = done.last["results"]
        assert result["verified"] == expected


def test_what_cannot_receive_asks_for_nothing(
    make_origin: MakeOrigin, moto: MotoServer, loopfs: Filesystems, tmp_path: Path, proxy: MakeProxy
) -> None:
    """Without the right to receive, or onto what is read-only, nothing is thawed, made or left behind."""
    origin = make_origin(moto, size_bytes=1 << 20, storage_class="DEEP_ARCHIVE")
    front, elsewhere, caller = proxy(moto), loopfs(), Caller(tmp_path, moto)
    arguments = restore_command(origin, elsewhere.path / "restored", front.endpoint_url)
    powerless = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", sys.executable, "-m", "b2s"]
    done = subprocess.run(
        [*powerless, *arguments], cwd="/", env=caller.environment, capture_output=True, text=True, check=False
    )
    last = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, last["exit_code"]) == (1, 1)
    assert "only root" in last["error"]
    assert "CAP_SYS_ADMIN" in last["hint"]
    elsewhere.remount("ro")
    refused = caller.call(*arguments)
    assert refused.exit_code == 2
    assert "read-only" in refused.last["error"]
    assert front.history("RestoreObject") == []
    assert list(elsewhere.path.iterdir()) == []


def test_quota_reached_is_told_and_the_same_command_succeeds(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, tmp_path: Path, proxy: MakeProxy
) -> None:
    """B06: EDQUOT in mid-receive is exit 1 with its cure, only ours is gone, and without the quota it works."""
    origin = make_origin(seaweed, size_bytes=24 << 20)
    front, elsewhere, caller = proxy(seaweed), loopfs(), Caller(tmp_path, seaweed)
    mine = elsewhere.subvolume("mine")
    (mine / "file").write_text("mine")
    before = tree_digest(mine)
    subprocess.run(["btrfs", "quota", "enable", elsewhere.path], check=True)
    held = Hold()
    front.rule("GetObject", held, key=origin.uploader.chunk_keys()[1], times=None)  # the first makes the subvolume
    arguments = restore_command(origin, elsewhere.path / "restored", front.endpoint_url)
    process = started(caller, arguments)
    try:
        poll(lambda: any(elsewhere.path.glob(".b2s-staging-*/received/*")), seconds=30, what="a partial subvolume")
        (partial,) = elsewhere.path.glob(".b2s-staging-*/received/*")
        subprocess.run(["btrfs", "qgroup", "limit", "1M", partial], check=True)
    finally:
        held.release()
        _, stderr = process.communicate(timeout=60)
    last = json.loads(stderr.splitlines()[-1])
    assert (process.returncode, last["exit_code"]) == (1, 1)
    assert "Disk quota exceeded" in last["error"]
    assert last["hint"] == "a quota of the target filesystem is reached; raise it and run the same command again"
    assert list(elsewhere.path.iterdir()) == [mine]
    assert differences(before, tree_digest(mine)) == []
    subprocess.run(["btrfs", "quota", "disable", elsewhere.path], check=True)
    caller.succeed(*arguments)
    assert differences(tree_digest(origin.snapshots[0]), tree_digest(elsewhere.path / "restored")) == []
    assert differences(before, tree_digest(mine)) == []


def test_archive_without_waiting_exits_5(
    make_origin: MakeOrigin, moto: MotoServer, loopfs: Filesystems, tmp_path: Path, proxy: MakeProxy
) -> None:
    """`--no-wait` ends with 5 and says when to come back; the same command then restores."""
    from tests.parts.faults import RewriteHeaders

    origin = make_origin(moto, size_bytes=1 << 20, storage_class="DEEP_ARCHIVE")
    front, elsewhere, caller = proxy(moto), loopfs(), Caller(tmp_path, moto)
    front.rule("HeadObject", RewriteHeaders({"x-amz-restore": 'ongoing-request="true"'}), nth=2, times=None)
    arguments = restore_command(origin, elsewhere.path / "restored", front.endpoint_url, "--no-wait")
    done = caller.call(*arguments)
    assert done.exit_code == 5
    assert "or later" in done.last["hint"]
    front.clear()
    caller.succeed(*arguments)
    assert len(front.history("RestoreObject")) == 1


def open_in_children(pid: int) -> list[str]:
    """Return what the processes below this one have open."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        for link in Path(f"/proc/{child.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(os.readlink(link))
    return found


def test_killed_supervisor_leaves_no_process_and_the_next_one_cleans_up(
    make_origin: MakeOrigin, seaweed: SeaweedServer, loopfs: Filesystems, tmp_path: Path, proxy: MakeProxy
) -> None:
    """K11: SIGKILL in mid-receive of the second member; repeated, the first is reused and the leftovers are gone."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    (origin.live / "big").write_bytes(os.urandom(30 << 20))
    newest = origin.back_up()
    slow, elsewhere, caller = proxy(seaweed), loopfs(), Caller(tmp_path, seaweed)
    before = invariants.observe()
    slow.bytes_per_second = 4e6
    process = started(caller, restore_command(origin, elsewhere.path / "restored", slow.endpoint_url))
    second = origin.uploader.stored[1].manifest.snapshot.name

    def receiving_second() -> bool:
        return any(elsewhere.path.glob(f".b2s-staging-*/received/{second}"))

    poll(receiving_second, seconds=60, what="the second member")
    assert not any(path.endswith(spool.OWNER_FILE) for path in open_in_children(process.pid)), "it would stay locked"
    process.kill()
    process.communicate()
    poll(lambda: not (invariants.observe().processes - before.processes), seconds=2, what="all children gone")
    (staging,) = elsewhere.path.glob(".b2s-staging-*")
    slow.bytes_per_second = None
    done = caller.succeed(*restore_command(origin, elsewhere.path / "restored", slow.endpoint_url))
    (result,) = done.last["results"]
    assert (result["received_backups"], result["reused_backups"]) == (1, 1)
    # Its spool may be removed by whoever runs b2s next on this host.
    assert str(staging) in {event["path"] for event in done.events if event["event"] == "orphan_removed"}
    assert not list(elsewhere.path.glob(".b2s-staging-*"))
    assert not (spool.MEMORY_DIRECTORY / staging.name.replace(".b2s-staging-", "b2s-")).exists()
    assert differences(tree_digest(newest), tree_digest(elsewhere.path / "restored")) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_stop_it_orderly(
    make_origin: MakeOrigin,
    seaweed: SeaweedServer,
    loopfs: Filesystems,
    tmp_path: Path,
    proxy: MakeProxy,
    number: signal.Signals,
    code: int,
) -> None:
    """A signal ends it within ten seconds with its exit code, and nothing is left beside the target."""
    origin = make_origin(seaweed)
    slow, elsewhere, caller = proxy(seaweed), loopfs(), Caller(tmp_path, seaweed)
    slow.bytes_per_second = 1e6
    process = started(caller, restore_command(origin, elsewhere.path / "restored", slow.endpoint_url))
    poll(lambda: any(elsewhere.path.glob(".b2s-staging-*/received/*")), seconds=60, what="a partial subvolume")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == code
    assert json.loads(stderr.splitlines()[-1])["exit_code"] == code
    assert list(elsewhere.path.iterdir()) == []


def test_verify_of_archived_data_says_what_it_did_not_read(
    make_origin: MakeOrigin, moto: MotoServer, tmp_path: Path, proxy: MakeProxy
) -> None:
    """Archived objects are checked as they lie there, exit 0; with `--data` exit 0 would be a lie."""
    origin = make_origin(moto, size_bytes=1 << 20, storage_class="DEEP_ARCHIVE")
    front, caller = proxy(moto), Caller(tmp_path, moto)
    assert "1 chunk by size and SHA-256" in caller.succeed("verify", *where(origin, front.endpoint_url)).stdout
    done = caller.call("verify", *where(origin, front.endpoint_url), "--data", "--json")
    assert done.exit_code == 1
    assert "archived and was not read" in done.last["error"]
    assert json.loads(done.stdout)["archived"] == [origin.uploader.stored[0].manifest.backup_id]
    assert front.history("RestoreObject") == []


def test_verify_data_stays_in_its_memory(make_origin: MakeOrigin, seaweed: SeaweedServer, tmp_path: Path) -> None:
    """I4: `--data` of a backup many times the spool holds no more of it than slots, as a backup does."""
    origin = make_origin(seaweed, size_bytes=200 << 20, chunk_bytes=50 << 20)
    done = Caller(tmp_path, seaweed).succeed("verify", *where(origin), "--data", sample_memory=True)
    assert "1 stream read" in done.stdout
    assert 0 < done.peak_pss_bytes < TREE_BYTES_MAX + 6 * origin.uploader.segment_bytes


def test_verify_command(make_origin: MakeOrigin, seaweed: SeaweedServer, tmp_path: Path) -> None:
    """Exit 0 without findings and 4 with one; `--json` is one document."""
    origin = make_origin(seaweed, size_bytes=1 << 20)
    caller = Caller(tmp_path, seaweed)
    assert "0 findings" in caller.succeed("verify", *where(origin), "--data").stdout
    uploader = origin.uploader
    uploader.client.delete_object(Bucket=uploader.bucket, Key=uploader.chunk_keys()[0])
    done = caller.call("verify", *where(origin), "--source", "data", "--json")
    assert done.exit_code == 4
    document = json.loads(done.stdout)
    assert [finding["finding"] for finding in document["findings"]] == ["chunk_missing"]
    assert document["backups_checked"] == 1
    assert done.last["error"].startswith("1 finding, the first: chunk_missing in data")
    assert caller.call("verify", *where(origin)).stdout.count("chunk_missing") == 1
    assert caller.call("verify", *where(origin), "--backup", "x").exit_code == 2


def test_waiting_for_the_archive_is_seen_on_a_terminal(
    make_origin: MakeOrigin, moto: MotoServer, loopfs: Filesystems, tmp_path: Path, proxy: MakeProxy
) -> None:
    """The live line counts what has come out of the archive, and gives way to the download."""
    from tests.parts.faults import RewriteHeaders

    origin = make_origin(moto, size_bytes=1 << 20, storage_class="DEEP_ARCHIVE")
    origin.change_and_back_up()
    front, elsewhere = proxy(moto), loopfs()
    ongoing = RewriteHeaders({"x-amz-restore": 'ongoing-request="true"'})
    full, incremental = origin.uploader.chunk_keys()
    front.rule("HeadObject", ongoing, nth=2, times=2, key=full)
    front.rule("HeadObject", ongoing, nth=2, times=4, key=incremental)
    config = tmp_path / "config.yaml"
    config.write_text(
        "sources: [{name: data, path: /srv/data}]\n"
        f"s3: {{bucket: b2s-restore, prefix: {origin.uploader.prefix}, endpoint_url: '{front.endpoint_url}'}}\n"
        "restore: {poll_interval: 1s}\n"
    )
    arguments = ["restore", "--config", str(config), "--source", "data", "--target", str(elsewhere.path / "restored")]
    seen = terminal.call(Caller(tmp_path, moto).environment, *arguments, width=100)
    assert seen.exit_code == 0, seen.raw
    assert [line for line in seen.live if "0 of 2" in line]
    assert [line for line in seen.live if "1 of 2" in line]
    assert all(len(line) <= 100 for line in seen.live)
    assert differences(tree_digest(origin.snapshots[-1]), tree_digest(elsewhere.path / "restored")) == []
