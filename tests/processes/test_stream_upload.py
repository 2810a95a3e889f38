"""A real `btrfs send` through chunker, spool, queues and uploaders into real S3 servers."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from b2s.adapters import btrfs, children, logs
from b2s.adapters.s3 import Bucket
from b2s.backup.resume import stored_so_far
from b2s.backup.stream_upload import StreamPlan, StreamUpload, UploadResult
from b2s.core.board import ResumedChunk, UploadBoard
from b2s.core.journal import BackupProgress, ChunkProgress, StoredChunk
from b2s.core.limits import MIB
from b2s.core.messages import ChunkStored
from b2s.core.model import Receipt, Sha256
from b2s.core.settings import LogSettings
from b2s.core.sizing import Sizes, spool_slots
from b2s.core.store_settings import S3Settings
from b2s.errors import SendFailed, StreamChanged
from b2s.processes.child import ChildBoot
from b2s.processes.signals import StopRequest
from scripts.bench.synthetic_stream import pieces
from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import S3Server

SEGMENT = 5 * MIB
RUN_ID = f"test-{os.getpid()}"  # names the spool in /dev/shm, which other test runs use too


class Notes:
    """Remembers what the upload told."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self.opened: dict[int, str] = {}
        self.receipts: dict[tuple[int, int], Receipt] = {}
        self.reports: dict[int, ChunkStored] = {}
        self.when: Callable[[], object] = lambda: None  # called after each

    @property
    def stored(self) -> list[int]:
        """Return the chunks that were completed."""
        return list(self.reports)

    def chunk_opened(self, chunk_index: int, key: str, upload_id: str) -> None:
        """Remember the upload."""
        self.opened[chunk_index] = upload_id

    def part_stored(self, chunk_index: int, receipt: Receipt, *, reused: bool) -> None:
        """Remember the receipt."""
        self.receipts[chunk_index, receipt.part_number] = receipt
        self.when()

    def chunk_stored(self, report: ChunkStored) -> None:
        """Remember the chunk."""
        self.reports[report.chunk_index] = report
        self.when()

    def bytes_moved(self, count: int) -> None:
        """Ignore it."""

    def progress(self) -> BackupProgress:
        """Return what a journal would know."""
        chunks = {}
        for index, upload_id in self.opened.items():
            receipts = {part: receipt for (chunk, part), receipt in self.receipts.items() if chunk == index}
            report = self.reports.get(index)
            stored = StoredChunk(report.bytes, report.etag, report.sha256_composite) if report else None
            chunks[index] = ChunkProgress(index, f"p/s/chunks/id/{index:06d}", upload_id, receipts, stored)
        return BackupProgress(intent=None, chunks=chunks)  # type: ignore[arg-type]  # nobody asks for it here


class Setting:
    """A snapshot, a bucket and the means to upload the one to the other."""

    def __init__(self, snapshot: Path, server: S3Server, bucket: str, tmp_path: Path) -> None:
        self.snapshot = snapshot
        self.client = server.client()
        self.s3 = S3Settings(bucket=bucket, region="us-east-1", endpoint_url=server.endpoint_url, concurrency=3)
        self.bucket = Bucket.connect(self.s3)
        self.facts = self.bucket.probe("p/s/probe")
        self.tmp_path = tmp_path
        self.pids: list[tuple[int, str]] = []

    def upload(self, **options: Any) -> UploadResult:
        """Run one upload; the options are those of `prepared`."""
        with self.prepared(**options).stored() as result:
            return result

    def prepared(
        self,
        *,
        chunk_segments: int = 2,
        segment: int = SEGMENT,
        disk: bool = False,
        resumed: Mapping[int, ResumedChunk] | None = None,
        send_argv: list[str] | None = None,
        notes: Notes | None = None,
    ) -> StreamUpload:
        """Return one upload that can be run."""
        plan = StreamPlan(
            send_argv=send_argv or btrfs.send_command(str(self.snapshot), None, 1, False),
            sizes=Sizes(segment, chunk_segments * segment),
            spool=spool_slots(on_disk=disk, size_bytes=4 * segment, segment_size_bytes=segment, concurrency=3),
            spool_parent=self.tmp_path / "spool" if disk else Path("/dev/shm"),
            s3=self.s3,
            store_facts=self.facts,
        )
        return StreamUpload(
            plan,
            UploadBoard(lambda index: f"p/s/chunks/id/{index:06d}", resumed or {}),
            notes or Notes(),
            ChildBoot(RUN_ID, "supervisor", LogSettings()),
            children.owner_label(RUN_ID),
            StopRequest(),
            logs.get_logger(),
            lambda pid, process: self.pids.append((pid, process)),
        )

    def stream(self) -> bytes:
        """Return what `btrfs send` writes."""
        return subprocess.run(["btrfs", "send", "-q", self.snapshot], stdout=subprocess.PIPE, check=True).stdout

    def stored(self) -> bytes:
        """Return all chunks, one after the other."""
        keys = [entry["Key"] for entry in self.client.list_objects_v2(Bucket=self.s3.bucket)["Contents"]]
        return b"".join(self.client.get_object(Bucket=self.s3.bucket, Key=key)["Body"].read() for key in sorted(keys))


@pytest.fixture(params=["seaweed", "rclone", "moto"])
def setting(
    request: pytest.FixtureRequest,
    loopfs: Callable[..., LoopFilesystem],
    bucket_on: Callable[[S3Server], str],
    aws_env: Callable[[S3Server], None],
    tmp_path: Path,
) -> Iterator[Setting]:
    """Make a 23 MiB snapshot and an empty bucket."""
    server: S3Server = request.getfixturevalue(request.param)
    filesystem = loopfs()
    source = filesystem.subvolume("source")
    for number in range(23):
        (source / f"file-{number}").write_bytes(hashlib.shake_128(bytes([number])).digest(MIB))
    aws_env(server)
    made = Setting(filesystem.snapshot(source, "snapshot"), server, bucket_on(server), tmp_path)
    yield made
    made.bucket.close()


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
def test_stream_arrives_byte_for_byte(setting: Setting, disk: bool) -> None:
    """What lies in the bucket is what `btrfs send` wrote, cut where the sizes say."""
    result = setting.upload(disk=disk)
    stream = setting.stream()
    assert setting.stored() == stream
    assert result.stream_bytes == len(stream) == result.uploaded_bytes
    assert [chunk.bytes for chunk in result.chunks[:-1]] == [2 * SEGMENT] * (len(result.chunks) - 1)
    hashes = [digest for chunk in result.chunks for digest in chunk.segment_sha256]
    assert hashes == [
        hashlib.sha256(stream[start : start + SEGMENT]).digest() for start in range(0, len(stream), SEGMENT)
    ]
    assert result.peak_spool_bytes <= 5 * SEGMENT
    assert not Path(f"/dev/shm/b2s-{RUN_ID}").exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid, _ in setting.pids)


@pytest.mark.parametrize("setting", ["seaweed"], indirect=True)
def test_second_signal_at_the_end_takes_back_nothing(setting: Setting) -> None:
    """What was made of the result stands, and everything has ended, though the uploaders hang."""

    def stop_uploaders() -> None:
        for pid in (pid for pid, process in setting.pids if process == "uploader"):
            os.kill(pid, signal.SIGSTOP)

    notes = Notes()
    notes.when = lambda: 0 in notes.reports and stop_uploaders()
    upload = setting.prepared(chunk_segments=100, notes=notes)
    before = signal.signal(signal.SIGUSR1, upload.stop._record)
    timers = [threading.Timer(delay, os.kill, (os.getpid(), signal.SIGUSR1)) for delay in (0.2, 0.3)]
    try:
        with upload.stored() as result:
            assert result.stream_bytes == len(setting.stream())
            for timer in timers:
                timer.start()
        assert upload.stop.signal_number == signal.SIGUSR1
    finally:
        for timer in timers:
            timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert not Path(f"/dev/shm/b2s-{RUN_ID}").exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid, _ in setting.pids)


@pytest.mark.parametrize("setting", ["seaweed", "rclone"], indirect=True)
@pytest.mark.parametrize(
    ("length", "cut_into"),
    [
        (1000, [1000]),
        (SEGMENT, [SEGMENT]),
        (2 * SEGMENT - 1, [2 * SEGMENT - 1]),
        (2 * SEGMENT, [2 * SEGMENT]),
        (2 * SEGMENT + 1, [2 * SEGMENT, 1]),
        (4 * SEGMENT, [2 * SEGMENT, 2 * SEGMENT]),
    ],
)
def test_stream_that_ends_at_a_boundary(setting: Setting, tmp_path: Path, length: int, cut_into: list[int]) -> None:
    """Where a stream ends with a segment or a chunk, no empty one follows; one byte more makes another."""
    stream = b"".join(pieces(length))
    (tmp_path / "stream").write_bytes(stream)
    result = setting.upload(send_argv=_script(tmp_path, f"exec cat {tmp_path / 'stream'}"))
    assert [chunk.bytes for chunk in result.chunks] == cut_into
    assert [len(chunk.segment_sha256) for chunk in result.chunks] == [-(-each // SEGMENT) for each in cut_into]
    stored = setting.client.list_objects_v2(Bucket=setting.s3.bucket)["Contents"]
    assert [entry["Size"] for entry in stored] == cut_into
    assert setting.stored() == stream


def _script(tmp_path: Path, body: str) -> list[str]:
    """Make a stand-in for `btrfs send` out of a shell script."""
    script = tmp_path / "fake-send"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o700)
    return [str(script)]


def _half_a_stream(tmp_path: Path, notes: Notes) -> list[str]:
    """Make a `btrfs send` that breaks off after three segments, once they are stored and the first chunk is whole."""
    notes.when = lambda: 0 in notes.stored and len(notes.receipts) == 3 and (tmp_path / "stored").touch()
    return _script(
        tmp_path, f"head -c 18000000 {tmp_path / 'stream'}; until [ -e {tmp_path / 'stored'} ]; do sleep 0.05; done"
    )


FAKE_SENDS = {
    "no output": ("exit 0", "the stream is empty"),
    "no END": ("head -c 20000000 STREAM", "in the middle of a command"),
    "exit 1 after END": ("cat STREAM; exit 1", "exit status 1"),
    "wrong magic": ("head -c 9000000 /dev/zero", "does not start with"),
    "bytes after END": ("cat STREAM; printf x", "follow"),
    "killed": ("head -c 9000000 STREAM; kill -9 $$", "SIGKILL"),
    "loud": ("cat STREAM; head -c 2000000 /dev/zero | tr '\\0' e >&2; echo last words >&2; exit 3", "exit status 3"),
}


@pytest.mark.parametrize("setting", ["seaweed"], indirect=True)
@pytest.mark.parametrize("kind", FAKE_SENDS)
def test_stream_that_is_not_whole_completes_no_last_chunk(setting: Setting, tmp_path: Path, kind: str) -> None:
    """Whatever is wrong with the stream, its last chunk is never completed and the reason is told (B02, K03)."""
    body, told = FAKE_SENDS[kind]
    (tmp_path / "stream").write_bytes(setting.stream())
    argv = _script(tmp_path, body.replace("STREAM", str(tmp_path / "stream")))
    notes = Notes()
    with pytest.raises(SendFailed, match=told) as failure:
        setting.upload(chunk_segments=100, send_argv=argv, notes=notes)
    assert notes.stored == []
    assert len(notes.receipts) <= len(setting.stream()) // SEGMENT + 1
    if kind == "loud":
        assert failure.value.context["send_stderr"].rstrip().endswith("last words")
    assert not any(Path(f"/proc/{pid}").exists() for pid, _ in setting.pids)


@pytest.mark.parametrize("setting", ["seaweed", "rclone"], indirect=True)
def test_resumed_upload_sends_only_what_is_missing(setting: Setting, tmp_path: Path) -> None:
    """After a broken stream, a second upload reuses every part and every chunk that S3 has with the same hash."""
    (tmp_path / "stream").write_bytes(setting.stream())
    notes = Notes()
    with pytest.raises(SendFailed):
        setting.upload(send_argv=_half_a_stream(tmp_path, notes), notes=notes)
    assert notes.receipts
    resumed = stored_so_far(setting.bucket, notes.progress())
    result = setting.upload(resumed=resumed)
    assert setting.stored() == setting.stream()
    assert result.reused_bytes == sum(receipt.bytes for receipt in notes.receipts.values())
    assert result.uploaded_bytes + result.reused_bytes == result.stream_bytes


@pytest.mark.parametrize("setting", ["seaweed"], indirect=True)
def test_changed_stream_is_never_mixed_into_a_stored_chunk(setting: Setting, tmp_path: Path) -> None:
    """A completed chunk whose segment hashes differ now ends the upload: a new backup has to start (B08)."""
    stream = setting.stream()
    (tmp_path / "stream").write_bytes(stream)
    notes = Notes()
    with pytest.raises(SendFailed):
        setting.upload(send_argv=_half_a_stream(tmp_path, notes), notes=notes)
    assert 0 in notes.stored
    stored = stored_so_far(setting.bucket, notes.progress())[0]
    other = replace(stored.parts[1], sha256=Sha256(bytes(32)))
    resumed = {0: replace(stored, parts={**stored.parts, 1: other})}
    with pytest.raises(StreamChanged):
        setting.upload(resumed=resumed)
    assert setting.stored()[: 2 * SEGMENT] == stream[: 2 * SEGMENT]


PARTS_MAX = 10_000
PAGE = 4096


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("setting", ["rclone"], indirect=True)  # the one that takes parts of less than 5 MiB
@pytest.mark.parametrize("segments", [PARTS_MAX - 1, PARTS_MAX, PARTS_MAX + 1])
def test_as_many_parts_as_an_upload_can_have(setting: Setting, tmp_path: Path, segments: int) -> None:
    """10,000 parts become one object, also resumed from a ListParts of several pages; one more opens the next (S12)."""
    stream = b"".join(pieces(segments * PAGE))
    (tmp_path / "stream").write_bytes(stream)
    notes = Notes()
    enough = 1200  # more than ListParts tells at once
    notes.when = lambda: len(notes.receipts) == enough and (tmp_path / "stored").touch()
    cut = f"head -c {enough * PAGE} {tmp_path / 'stream'}; until [ -e {tmp_path / 'stored'} ]; do sleep 0.05; done"
    with pytest.raises(SendFailed):
        setting.upload(segment=PAGE, chunk_segments=PARTS_MAX, send_argv=_script(tmp_path, cut), notes=notes)
    # Only ListParts knows of them: as after a power cut.
    notes.receipts.clear()
    result = setting.upload(
        segment=PAGE,
        chunk_segments=PARTS_MAX,
        resumed=stored_so_far(setting.bucket, notes.progress()),
        send_argv=_script(tmp_path, f"exec cat {tmp_path / 'stream'}"),
    )
    assert result.reused_bytes == enough * PAGE
    parts = [min(segments, PARTS_MAX), *([segments - PARTS_MAX] if segments > PARTS_MAX else [])]
    assert [len(chunk.segment_sha256) for chunk in result.chunks] == parts
    assert [chunk.sha256_composite.rpartition("-")[2] for chunk in result.chunks] == [str(each) for each in parts]
    assert setting.stored() == stream
