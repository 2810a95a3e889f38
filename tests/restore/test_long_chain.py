"""Long chains: thirty-one on a bare filesystem and what can be added afterwards; twenty-six out of the archive."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parts.faults import RewriteHeaders
from tests.parts.loopfs import LoopFilesystem
from tests.parts.proxy import FaultProxy
from tests.parts.servers import MotoServer, S3Server, SeaweedServer
from tests.parts.tree import change_tree, differences, tree_digest
from tests.parts.workspace import poll
from tests.restore.conftest import Origin
from tests.restore.test_restore_command import restore_command, started
from tests.system.commands import Caller

INCREMENTALS = 30
FROZEN = 26
IN_PROGRESS = RewriteHeaders({"x-amz-restore": 'ongoing-request="true"'}, where_present=True)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_full_and_thirty_incrementals_then_one_more(
    make_origin: Callable[..., Origin], seaweed: SeaweedServer, loopfs: Callable[..., LoopFilesystem]
) -> None:
    """The newest point comes back equal, and the origin's next incremental applies to what was kept (I8)."""
    origin = make_origin(seaweed, size_bytes=2 << 20)
    for _ in range(INCREMENTALS):
        origin.change_and_back_up()
    elsewhere = loopfs(size_bytes=1 << 30)
    restored = origin.restorer()(elsewhere.path / "restored")
    assert restored.received_backups == INCREMENTALS + 1
    assert differences(tree_digest(origin.snapshots[-1]), tree_digest(elsewhere.path / "restored")) == []
    change_tree(origin.live, seed=99)
    next_one = origin.filesystem.snapshot(origin.live, "next")
    applied = send_onto(origin.snapshots[-1], next_one, elsewhere.path)
    assert differences(tree_digest(next_one), tree_digest(applied)) == []


@pytest.mark.parametrize("backups", [3, pytest.param(FROZEN, marks=pytest.mark.long)])
@pytest.mark.timeout(900)
def test_frozen_chain_killed_at_will_asks_once_for_each_object(
    make_origin: Callable[..., Origin],
    moto: MotoServer,
    proxy: Callable[[S3Server], FaultProxy],
    loopfs: Callable[..., LoopFilesystem],
    tmp_path: Path,
    backups: int,
) -> None:
    """A chain in DEEP_ARCHIVE: SIGKILL at many moments while asking and waiting, and one RestoreObject for each chunk.

    What was asked for stays "in progress" until the end; then the same command goes on by itself, asks for nothing,
    and the result is equal.
    """
    origin = make_origin(moto, size_bytes=1 << 20, storage_class="DEEP_ARCHIVE")
    for _ in range(backups - 1):
        origin.change_and_back_up()
    keys, front, elsewhere = origin.uploader.chunk_keys(), proxy(moto), loopfs(size_bytes=1 << 30)
    front.rule("HeadObject", IN_PROGRESS, times=None)
    caller = Caller(tmp_path, moto)
    command = restore_command(origin, elsewhere.path / "restored", front.endpoint_url)
    dice = random.Random(backups)
    while len(front.history("RestoreObject")) < len(keys):
        wanted = len(front.history("RestoreObject")) + dice.randint(1, max(2, len(keys) // 5))
        process = started(caller, command)
        wait_for_calls(front, "RestoreObject", min(len(keys), wanted))
        kill(process, front)
    for looks in (1, len(keys)):  # at the first one; when all were looked at
        before = len(front.history("HeadObject"))
        process = started(caller, command)
        wait_for_calls(front, "HeadObject", before + looks)
        kill(process, front)
    process = started(caller, command)
    assert process.stderr is not None
    assert any(b'"retrieval_waiting"' in line for line in process.stderr)
    kill(process, front)
    pending = caller.call(*command, "--no-wait")
    assert pending.exit_code == 5
    assert list(elsewhere.path.iterdir()) == []
    front.clear()
    caller.succeed(*command)
    # One of which only the headers were sent before the kill asks for nothing: no store acts without the body.
    requests = [call for call in front.history("RestoreObject") if call.request_bytes]
    assert Counter(call.key for call in requests) == Counter(keys)
    asked = max(call.finished or 0 for call in requests)
    assert min(call.started for call in front.history("GetObject", key="chunks/")) > asked
    assert differences(tree_digest(origin.snapshots[-1]), tree_digest(elsewhere.path / "restored")) == []


def wait_for_calls(front: FaultProxy, operation: str, count: int) -> None:
    """Wait until a store has answered so many calls."""
    poll(lambda: len(front.history(operation)) >= count, seconds=60, what=f"{count} of {operation}")


def kill(process: subprocess.Popen[bytes], front: FaultProxy) -> None:
    """Kill a restore, and wait until the store has answered what it sent to the very last."""
    process.kill()
    process.communicate()
    poll(lambda: not front.connections(), seconds=10, what="the last call")


def send_onto(parent: Path, snapshot: Path, directory: Path) -> Path:
    """Send an incremental straight into a directory, as anybody could; return what was received."""
    send = subprocess.Popen(["btrfs", "send", "-q", "-p", parent, snapshot], stdout=subprocess.PIPE)
    with send:
        subprocess.run(["btrfs", "receive", "-q", directory], stdin=send.stdout, check=True)
    assert send.returncode == 0
    return directory / snapshot.name
