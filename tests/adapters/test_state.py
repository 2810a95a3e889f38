"""The state file: what it keeps, and that any damage to it costs nothing but time."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from b2s.adapters.children import ProcessId
from b2s.adapters.state import CachedManifest, OwnSnapshot, State
from b2s.core.journal import BackupIntent, StoredChunk
from b2s.core.manifest import ManifestLink, SendParent, SnapshotIdentity, SourceIdentity
from b2s.core.model import Kind, Reason, Receipt, Sha256
from b2s.errors import StateError
from tests.parts.loopfs import LoopFilesystem

HOST = "host-a"

INTENT = BackupIntent(
    backup_id="20261101T020000Z-inc-00000001",
    sequence=2,
    kind=Kind.INCREMENTAL,
    reason=Reason.INTERVAL,
    store="https://s3.example/bucket/prefix",
    created_at=datetime(2026, 11, 1, 2, 0, 0, 123456, tzinfo=UTC),
    source=SourceIdentity("data", "/srv/d\udcffta", "u-source", "u-filesystem"),
    snapshot=SnapshotIdentity("snap", "/snap", "u-snapshot", 77, ("nested", "ne\nst\udcfe")),
    previous=ManifestLink(1, "aa" * 32),
    send_parent=SendParent("20261001T020000Z-full-00000000", 1, "aa" * 32, "u-parent"),
    send_parent_path="/snap/parent",
    protocol=2,
    compressed_data=True,
    segment_size_bytes=32 << 20,
    chunk_size_bytes=200 << 30,
    storage_class="DEEP_ARCHIVE",
    sse="AES256",
)
FIRST = replace(INTENT, backup_id="20261101T020000Z-full-00000002", kind=Kind.FULL, previous=None, send_parent=None)


def receipt(number: int) -> Receipt:
    """Return a receipt that is different for every number."""
    return Receipt(number, 1000 + number, Sha256(number.to_bytes(32, "big")), f"etag-{number}")


def filled(path: Path) -> None:
    """Make a state that holds something of everything."""
    with State.open(str(path), HOST) as state:
        state.begin(INTENT)
        state.chunk_opened(INTENT.backup_id, 0, "chunks/0", "upload-0")
        for number in range(1, 40):
            state.part_stored(INTENT.backup_id, 0, receipt(number))
        state.chunk_stored(INTENT.backup_id, 0, StoredChunk(1234, "etag", "c29tZQ==-39"))
        state.chunk_opened(INTENT.backup_id, 1, "chunks/1", "upload-1")
        state.cache_manifest("store", "data", 1, "etag-1", b'{"a": 1}' * 2000)
        state.record_outcome("data", datetime(2026, 11, 1, tzinfo=UTC), False, "it broke", "mend it")
        state.record_child("run-a", ProcessId(123, 4.5), "uploader")
        state.record_snapshot("data", "/snap/a", "uuid-a", INTENT.backup_id)


def read_all(state: State) -> None:
    """Read everything that can be read."""
    state.unfinished()
    state.progress(INTENT.backup_id)
    state.cached_manifest("store", "data", 1)
    state.outcomes()
    state.children()
    state.own_snapshots("data")


def usable(state: State) -> bool:
    """Tell whether a backup can be journaled in it, from begin to finish."""
    intent = replace(INTENT, backup_id="fresh")
    state.begin(intent)
    state.chunk_opened("fresh", 0, "key", "upload")
    state.part_stored("fresh", 0, receipt(1))
    progress = state.progress("fresh")
    state.finish("fresh")
    return progress is not None and progress.chunks[0].receipts == {1: receipt(1)} and progress.intent == intent


def test_everything_comes_back_as_it_went_in(tmp_path: Path) -> None:
    """Intents, chunks, receipts, manifests, outcomes, children and snapshots survive closing the file."""
    path = tmp_path / "new" / "state.db"
    filled(path)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["state.db"]
    with State.open(str(path), HOST) as state:
        assert (state.created, state.rebuilt_reason, state.moved_to) == (False, None, None)
        state.begin(FIRST)
        other, progress = state.unfinished()
        assert (progress.intent, other.intent) == (INTENT, FIRST)
        assert progress.chunks[0].receipts == {number: receipt(number) for number in range(1, 40)}
        assert progress.chunks[0].stored == StoredChunk(1234, "etag", "c29tZQ==-39")
        assert (progress.chunks[1].upload_id, progress.chunks[1].receipts) == ("upload-1", {})
        assert progress.chunks[1].stored is None
        assert state.cached_manifest("store", "data", 1) == CachedManifest("etag-1", b'{"a": 1}' * 2000)
        assert state.cached_manifest("other", "data", 1) is None
        assert state.outcomes()["data"].hint == "mend it"
        assert state.children() == [("run-a", ProcessId(123, 4.5), "uploader")]
        assert state.own_snapshots("data") == [OwnSnapshot("data", "/snap/a", "uuid-a", INTENT.backup_id)]


def test_what_is_over_is_forgotten(tmp_path: Path) -> None:
    """Whatever forgets leaves nothing of theirs and everything of others."""
    path = tmp_path / "state.db"
    filled(path)
    with State.open(str(path), HOST) as state:
        state.begin(FIRST)
        state.finish(INTENT.backup_id)
        assert [progress.intent for progress in state.unfinished()] == [FIRST]
        state.forget_manifests("store", "data")
        assert state.cached_manifest("store", "data", 1) is None
        state.forget_children("run-a")
        assert state.children() == []
        state.forget_snapshot_path("/snap/a")
        assert state.own_snapshots("data") == []
    rows = sqlite3.connect(path)
    assert rows.execute("SELECT count(*) FROM part").fetchone() == (0,)
    rows.close()


def test_a_new_upload_of_a_chunk_forgets_the_old_ones_receipts(tmp_path: Path) -> None:
    """Receipts belong to one upload id; for a chunk that was never opened there are none."""
    with State.open(str(tmp_path / "state.db"), HOST) as state:
        state.begin(INTENT)
        state.chunk_opened(INTENT.backup_id, 0, "key", "old")
        state.part_stored(INTENT.backup_id, 0, receipt(1))
        state.chunk_opened(INTENT.backup_id, 0, "key", "new")
        state.part_stored(INTENT.backup_id, 0, receipt(2))
        progress = state.progress(INTENT.backup_id)
        assert progress is not None
        assert (progress.chunks[0].upload_id, set(progress.chunks[0].receipts)) == ("new", {2})
        with pytest.raises(KeyError):
            state.part_stored(INTENT.backup_id, 7, receipt(1))
        with pytest.raises(KeyError):
            state.chunk_stored("unknown", 0, StoredChunk(1, "e", "s"))


def test_an_announced_snapshot_is_ours_before_and_after_it_is_made(tmp_path: Path) -> None:
    """Killed between announcement and ioctl, the next run knows the path; undecodable paths too."""
    with State.open(str(tmp_path / "state.db"), HOST) as state:
        state.record_snapshot("data", "/snap/\udcff", None, None)
        assert state.own_snapshots("data") == [OwnSnapshot("data", "/snap/\udcff", None, None)]
        state.record_snapshot("data", "/snap/\udcff", "uuid", "backup")
        assert state.own_snapshots("data") == [OwnSnapshot("data", "/snap/\udcff", "uuid", "backup")]
        state.forget_snapshot_path("/snap/\udcff")
        assert state.own_snapshots("data") == []
        state.record_outcome("data", datetime.now(UTC), False, "cannot read /x\udcff", None)
        assert state.outcomes()["data"].error == "cannot read /x\\udcff"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b""), "not a state file"),
        (lambda path: path.write_bytes(os.urandom(50_000)), "damaged"),
        (lambda path: path.write_bytes(b"x"), "not a state file"),
        (lambda path: _execute(path, "PRAGMA user_version=2"), "newer version 2"),
        (lambda path: _execute(path, "PRAGMA user_version=0"), "unknown version 0"),
        (lambda path: _execute(path, "PRAGMA application_id=7"), "not a state file"),
        (lambda path: _execute(path, "UPDATE host SET id='other'"), "another host"),
        (lambda path: _execute(path, "DELETE FROM host"), "another host"),
        (lambda path: _execute(path, "DROP TABLE part"), "its tables"),
        (lambda path: _execute(path, "UPDATE backup SET intent='{}'"), "journal is corrupt"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4096]), "corrupt|damaged"),
    ],
)
def test_a_useless_file_is_moved_aside_and_replaced(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    """Whatever is wrong, it is said, kept for a look, and the new state works; reading only changes nothing."""
    path = tmp_path / "state.db"
    filled(path)
    damage(path)
    before = path.read_bytes()
    with State.open_read_only(str(path), HOST) as state:
        assert state.rebuilt_reason is not None
        assert state.unfinished() == []
    assert (os.listdir(tmp_path), path.read_bytes()) == (["state.db"], before)
    with State.open(str(path), HOST) as state:
        assert state.rebuilt_reason is not None
        assert re.search(reason, state.rebuilt_reason)
        assert state.moved_to is not None
        assert Path(state.moved_to).read_bytes() == before
        assert state.unfinished() == []
        assert usable(state)
    with State.open(str(path), HOST) as state:
        assert state.rebuilt_reason is None


def test_files_moved_aside_are_bounded(tmp_path: Path) -> None:
    """Three are kept, the newest; foreign files beside them stay."""
    path = tmp_path / "state.db"
    (tmp_path / "state.db.damaged-notes.txt").touch()
    for number in range(6):
        path.write_bytes(b"garbage %d" % number)
        State.open(str(path), HOST).close()
    kept = sorted(path for path in tmp_path.iterdir() if path.name.endswith("Z"))
    assert [each.read_bytes() for each in kept] == [b"garbage 3", b"garbage 4", b"garbage 5"]
    assert (tmp_path / "state.db.damaged-notes.txt").exists()


def test_a_deleted_state_is_made_anew_without_its_old_wal(tmp_path: Path) -> None:
    """A WAL left behind by a deleted file is not taken for the new one's."""
    path = tmp_path / "state.db"
    filled(path)
    with State.open(str(path), HOST) as state:
        state.record_child("run-b", ProcessId(1, 1.0), "x")
        shutil.copy(f"{path}-wal", tmp_path / "wal")
    path.unlink()
    shutil.move(tmp_path / "wal", f"{path}-wal")
    with State.open(str(path), HOST) as state:
        assert (state.created, state.rebuilt_reason) == (True, None)
        assert state.children() == []
        assert usable(state)


def test_truncated_anywhere_it_is_sound_or_replaced(tmp_path: Path) -> None:
    """Cut at a hundred lengths, with and without its WAL: never an exception, always usable."""
    master = tmp_path / "master.db"
    filled(master)
    with State.open(str(master), HOST) as state:
        state.record_child("run-b", ProcessId(1, 1.0), "x")
        whole, wal = master.read_bytes(), Path(f"{master}-wal").read_bytes()
    lengths = random.Random(1).sample(range(len(whole)), 60) + list(range(0, len(whole), 4096))
    for length in lengths:
        path = _copy(tmp_path, whole[:length], b"")
        _must_open(path)
    for length in [*random.Random(2).sample(range(len(wal)), 30), 0, 32, len(wal)]:
        path = _copy(tmp_path, whole, wal[:length])
        with State.open_read_only(str(path), HOST) as state:
            assert state.rebuilt_reason is None
        with State.open(str(path), HOST) as state:
            assert state.rebuilt_reason is None
            assert len(state.children()) in (1, 2)
            assert usable(state)


def test_flipped_bits_never_become_wrong_data(tmp_path: Path) -> None:
    """After any flip it is replaced, or what it says of receipts, intents and manifests is still true."""
    master = tmp_path / "master.db"
    filled(master)
    whole = master.read_bytes()
    chance = random.Random(3)
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(chance.choice((1, 1, 8))):
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        _must_open(_copy(tmp_path, bytes(broken), b""))


def test_garbage_pages_never_escape(tmp_path: Path) -> None:
    """Whole pages of noise or zeros anywhere end in a sound or a new state."""
    master = tmp_path / "master.db"
    filled(master)
    whole = master.read_bytes()
    chance = random.Random(4)
    for number in range(0, len(whole), 4096):
        for noise in (bytes(4096), chance.randbytes(4096)):
            _must_open(_copy(tmp_path, whole[:number] + noise + whole[number + 4096 :], b""))


def test_a_path_that_is_no_file_is_an_error(tmp_path: Path) -> None:
    """Directory, link, FIFO and an impossible parent are refused with a hint, and left alone."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for name in ("directory", "link", "fifo", "file/state.db"):
        with pytest.raises(StateError) as caught:
            State.open(str(tmp_path / name), HOST)
        assert caught.value.hint
    assert not (tmp_path / "elsewhere").exists()


def test_reading_only_makes_nothing(tmp_path: Path) -> None:
    """A missing state looks empty and stays missing; a sound one gets no side files; a running writer is seen."""
    path = tmp_path / "none" / "state.db"
    with State.open_read_only(str(path)) as state:
        assert (state.unfinished(), state.outcomes(), state.created) == ([], {}, True)
    assert list(tmp_path.iterdir()) == []
    filled(path)
    with State.open_read_only(str(path)) as state:
        assert [progress.intent for progress in state.unfinished()] == [INTENT]
        with pytest.raises(StateError):
            state.finish(INTENT.backup_id)
    assert os.listdir(path.parent) == ["state.db"]
    with State.open(str(path), HOST) as writer:
        writer.part_stored(INTENT.backup_id, 1, receipt(5))
        with State.open_read_only(str(path), HOST) as state:
            progress = state.progress(INTENT.backup_id)
            assert progress is not None
            assert set(progress.chunks[1].receipts) == {5}


def test_a_full_disk_is_an_error_and_loses_nothing(loopfs: Callable[..., LoopFilesystem]) -> None:
    """ENOSPC in the middle of writing: our error with a hint, the old content stays, room makes it work again."""
    filesystem = loopfs(kind="ext4", size_bytes=16 << 20)
    path = filesystem.path / "state.db"
    ballast = filesystem.path / "ballast"
    filled(path)
    with State.open(str(path), HOST) as state:
        with pytest.raises(OSError, match="No space"):
            _fill_up(ballast)
        with pytest.raises(StateError) as caught:
            _cache_megabytes(state)
        assert caught.value.hint
        with pytest.raises(StateError):
            State.open(str(filesystem.path / "other" / "state.db"), HOST)
        assert [progress.intent for progress in state.unfinished()] == [INTENT]
        ballast.unlink()
        assert usable(state)
    with State.open(str(path), HOST) as state:
        assert state.rebuilt_reason is None
        assert [progress.intent for progress in state.unfinished()] == [INTENT]


def test_a_read_only_filesystem_is_an_error_but_can_be_read(loopfs: Callable[..., LoopFilesystem]) -> None:
    """EROFS for a run, no obstacle for status; also with the WAL of a killed run beside it."""
    filesystem = loopfs(kind="ext4", size_bytes=16 << 20)
    path = filesystem.path / "state.db"
    filled(path)
    state = State.open(str(path), HOST)
    state.record_child("run-b", ProcessId(1, 1.0), "x")
    copy = {name: Path(f"{path}{name}").read_bytes() for name in ("", "-wal")}
    state.close()
    for name, content in copy.items():
        Path(f"{path}{name}").write_bytes(content)
    filesystem.remount("ro")
    with pytest.raises(StateError) as caught, State.open(str(path), HOST) as state:
        state.finish(INTENT.backup_id)
    assert caught.value.hint
    with State.open_read_only(str(path), HOST) as state:
        assert state.rebuilt_reason is None
        assert [progress.intent for progress in state.unfinished()] == [INTENT]


WRITER = """
import sys
from tests.adapters.test_state import INTENT, HOST, receipt
from b2s.adapters.state import State
from b2s.core.journal import StoredChunk
from dataclasses import replace
with State.open(sys.argv[1], HOST) as state:
    print("open", flush=True)
    for round in range(10**6):
        state.begin(replace(INTENT, sequence=round + 1))
        for chunk in range(3):
            state.chunk_opened(INTENT.backup_id, chunk, "key", f"upload-{round}")
            for number in range(1, 6):
                state.part_stored(INTENT.backup_id, chunk, receipt(number))
            state.chunk_stored(INTENT.backup_id, chunk, StoredChunk(1, "e", "s"))
        state.finish(INTENT.backup_id)
"""


def test_killed_between_any_two_writes_it_is_sound(tmp_path: Path) -> None:
    """SIGKILL at random moments of opening and writing: each time whole transactions, nothing rebuilt."""
    path = tmp_path / "state.db"
    chance = random.Random(5)
    for attempt in range(8):
        with _writer(path) as process:
            assert process.stdout is not None
            if attempt > 2:
                assert process.stdout.readline() == b"open\n"
            time.sleep(chance.random() * 0.3)  # the moment of the kill is the point, nothing is waited for
            process.send_signal(signal.SIGKILL)
        with State.open(str(path), HOST) as state:
            assert state.rebuilt_reason is None
            for progress in state.unfinished():
                assert set(progress.chunks) <= {0, 1, 2}
                for chunk in progress.chunks.values():
                    numbers = set(chunk.receipts)
                    assert numbers == set(range(1, len(numbers) + 1))
                    assert chunk.stored is None or len(numbers) == 5
                    assert chunk.upload_id == f"upload-{progress.intent.sequence - 1}"
            assert usable(state)
    assert not (tmp_path / "state.db.new").exists()


def test_killed_while_it_is_made_it_is_made_again(tmp_path: Path) -> None:
    """SIGKILL at every write of the first opening leaves no half state behind."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    for syscall, last in (("pwrite64", 12), ("fsync,fdatasync", 6), ("rename,renameat,renameat2", 1)):
        for nth in range(1, last + 1):
            directory = tmp_path / f"{syscall.split(',', maxsplit=1)[0]}-{nth}"
            path = directory / "state.db"
            code = "import sys; from b2s.adapters.state import State; State.open(sys.argv[1], 'host-a').close()"
            inject = f"inject={syscall}:signal=SIGKILL:when={nth}"
            subprocess.run(
                ["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject, sys.executable, "-c", code, str(path)],
                check=False,
                capture_output=True,
            )
            with State.open(str(path), HOST) as state:
                assert state.rebuilt_reason is None
                assert usable(state)
            assert os.listdir(directory) == ["state.db"]


def test_receipts_cost_little_however_many_there_are(tmp_path: Path) -> None:
    """Twenty thousand receipts: less than 0.3 ms of CPU each, the last ones no dearer than the first."""
    with State.open(str(tmp_path / "state.db"), HOST) as state:
        state.begin(INTENT)
        state.chunk_opened(INTENT.backup_id, 0, "key", "upload")
        costs = []
        for start in range(0, 20_000, 5000):
            began = time.process_time()
            for number in range(start + 1, start + 5001):
                state.part_stored(INTENT.backup_id, 0, receipt(number))
            costs.append((time.process_time() - began) / 5000)
    assert max(costs) < 0.0003
    assert costs[-1] < 3 * costs[0]


def _execute(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement)
    connection.close()


def _fill_up(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(64 << 10))


def _cache_megabytes(state: State) -> None:
    for sequence in range(2, 200):
        state.cache_manifest("store", "data", sequence, "e", os.urandom(100_000))


def _copy(directory: Path, content: bytes, wal: bytes) -> Path:
    """Write a state file of its own into an empty directory."""
    place = directory / "copy"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    path = place / "state.db"
    path.write_bytes(content)
    if wal:
        Path(f"{path}-wal").write_bytes(wal)
    return path


def _must_open(path: Path) -> None:
    """Open it, read all of it, use it; where it was not replaced, what it says must be what was written."""
    with State.open_read_only(str(path), HOST) as state:
        read_all(state)
    with State.open(str(path), HOST) as state:
        read_all(state)
        for progress in state.unfinished():
            assert progress.intent == INTENT
            for chunk in progress.chunks.values():
                assert all(each == receipt(number) for number, each in chunk.receipts.items())
        for sequence in {1, state.newest_cached("store", "data") or 1}:
            cached = state.cached_manifest("store", "data", sequence)
            assert cached is None or cached.body == b'{"a": 1}' * 2000
        assert usable(state)


def _writer(path: Path) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": root},
    )
