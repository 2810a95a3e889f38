"""Drive the arithmetic of a 5 TiB backup through b2s's real pipeline, with segments of 64 KiB instead of 32 MiB.

    python -m scripts.bench.scale [--segments 1000,10000,100000,163840] [--resume]

S3 takes no parts below 5 MiB and the settings allow none; the pipeline itself does not care. So this builds its plan
directly, feeds a synthetic stream, and uses everything else as it is: processes, spool, journal, uploads, manifest.
At 6,400 segments per chunk, 163,840 segments are the 26 chunks of 5 TiB with default sizes. What counts is whether a
segment costs the same in a long backup as in a short one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from b2s.adapters import logs
from b2s.adapters.children import owner_label
from b2s.adapters.s3 import Bucket
from b2s.adapters.state import State
from b2s.backup.commit import commit, manifest_of
from b2s.backup.resume import stored_so_far
from b2s.backup.stream_upload import StreamPlan, StreamUpload, UploadResult
from b2s.core.board import ResumedChunk, UploadBoard
from b2s.core.journal import BackupIntent, StoredChunk
from b2s.core.layout import Layout
from b2s.core.manifest import Host, SnapshotIdentity, SourceIdentity
from b2s.core.manifest_codec import decode
from b2s.core.messages import ChunkStored
from b2s.core.model import Kind, Reason, Receipt
from b2s.core.settings import LogSettings
from b2s.core.sizing import Sizes, spool_slots
from b2s.core.store_settings import S3Settings
from b2s.errors import SendFailed
from b2s.processes.child import ChildBoot
from b2s.processes.signals import StopRequest
from scripts.bench.servers import REPOSITORY, Certificate, Profile, Sink

CHUNK_SEGMENTS = 6400  # 200 GiB of 32 MiB
WINDOW_SEGMENTS = 1000
BACKUP_ID = "20260101T000000Z-full-00000006"
UUID = "00000000-0000-4000-8000-000000000006"


@dataclass(slots=True)
class Notes:
    """Writes the journal like a real run, and looks at the clock every thousand segments."""

    state: State
    windows: list[dict[str, float]] = field(default_factory=list)
    count: int = 0

    def chunk_opened(self, chunk_index: int, key: str, upload_id: str) -> None:
        """Note it in the journal."""
        self.state.chunk_opened(BACKUP_ID, chunk_index, key, upload_id)

    def part_stored(self, chunk_index: int, receipt: Receipt, *, reused: bool) -> None:
        """Note it in the journal, and what the run has cost so far."""
        if not reused:
            self.state.part_stored(BACKUP_ID, chunk_index, receipt)
        self.count += 1
        if self.count % WINDOW_SEGMENTS == 0:
            self.look()

    def chunk_stored(self, report: ChunkStored) -> None:
        """Note it in the journal."""
        stored = StoredChunk(report.bytes, report.etag, report.sha256_composite)
        self.state.chunk_stored(BACKUP_ID, report.chunk_index, stored)

    def bytes_moved(self, count: int) -> None:
        """Nobody watches."""

    def look(self) -> None:
        """Take down time, CPU time by role, and memory."""
        me = psutil.Process()
        children = [child for child in me.children(recursive=True) if child.name() != "sh"]
        own = time.process_time()
        below = sum(sum(child.cpu_times()[:2]) for child in children if child.is_running())
        self.windows.append(
            {
                "segments": self.count,
                "seconds": time.monotonic(),
                "supervisor_cpu": own,
                "children_cpu": below,
                "supervisor_rss": me.memory_info().rss,
            }
        )


def main() -> None:
    """Measure each size in a process of its own and print a table."""
    options = _options()
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    if options.one is not None:
        print(json.dumps(_measure(options.one, options)))
        return
    found = []
    for segments in options.segments.split(","):
        argv = [
            sys.executable,
            "-m",
            "scripts.bench.scale",
            "--one",
            segments,
            "--segment-kib",
            str(options.segment_kib),
        ]
        argv += ["--resume"] if options.resume else []
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
        )
        found.append(json.loads(done.stdout))
        print(_line(found[-1], head=len(found) == 1), flush=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Is a segment's cost the same in a long backup?")
    parser.add_argument("--segments", default="1000,10000,100000,163840", help="sizes to measure")
    parser.add_argument("--segment-kib", type=int, default=64)
    parser.add_argument("--resume", action="store_true", help="break off before the end, then resume")
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(segments: int, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="scale-of-b2s-", dir="/dev/shm") as name:
        directory = Path(name)
        with Sink(Profile("scale", https=False), directory / "sink", Certificate.make(directory)) as sink:
            os.environ.update(sink.environment)
            with _Backup(segments, options.segment_kib * 1024, directory, sink).opened() as backup:
                return backup.resumed() if options.resume else backup.straight()


@dataclass(slots=True)
class _Backup:
    """One synthetic backup."""

    segments: int
    segment_bytes: int
    directory: Path
    sink: Sink
    layout: Layout = field(default_factory=lambda: Layout("scale", "synthetic"))
    _bucket: Any = None
    _state: Any = None

    @contextmanager
    def opened(self) -> Iterator[_Backup]:
        """Connect, and begin the journal."""
        logs.configure(LogSettings(level="warning", format="json"), "scale")
        self._bucket = Bucket.connect(self._s3())
        with State.open(str(self.directory / "state.db"), "host") as self._state:
            self._state.begin(self._intent())
            yield self
        self._bucket.close()

    def straight(self) -> dict[str, Any]:
        """Back up, commit, and read the manifest back."""
        notes = Notes(self._state)
        started = time.monotonic(), _cpu_seconds()
        result = self._upload(notes, {}, cut=False)
        seconds, cpu = time.monotonic() - started[0], _cpu_seconds() - started[1]
        assert result.segments == self.segments
        journal = self._journal_bytes()
        timed = time.process_time()
        manifest = manifest_of(
            self._intent(), result.chunks, result.stream_bytes, Host("scale", "00" * 32), datetime.now(UTC)
        )
        body = commit(self._bucket, self.layout, manifest)
        committed = time.process_time()
        assert decode(body, key_sequence=1, source="synthetic") == manifest
        decoded = time.process_time()
        self._state.finish(BACKUP_ID)
        return {
            **self._facts(notes, seconds, cpu),
            "chunks": len(result.chunks),
            "journal_bytes": journal,
            "manifest_bytes": len(body),
            "commit_cpu_seconds": committed - timed,
            "decode_cpu_seconds": decoded - committed,
        }

    def resumed(self) -> dict[str, Any]:
        """Back up to just before END, then resume: ask S3 what it has, hash everything again, send nothing again."""
        with suppress(SendFailed):
            self._upload(Notes(self._state), {}, cut=True)
        progress = self._state.progress(BACKUP_ID)
        asked = time.monotonic(), time.process_time()
        resumed = stored_so_far(self._bucket, progress)
        answered = time.monotonic() - asked[0], time.process_time() - asked[1]
        notes = Notes(self._state)
        started = time.monotonic(), _cpu_seconds()
        result = self._upload(notes, resumed, cut=False)
        seconds, cpu = time.monotonic() - started[0], _cpu_seconds() - started[1]
        return {
            **self._facts(notes, seconds, cpu),
            "chunks": len(result.chunks),
            "journal_bytes": self._journal_bytes(),
            "ask_seconds": answered[0],
            "ask_cpu_seconds": answered[1],
            "uploaded_bytes": result.uploaded_bytes,
            "reused_bytes": result.reused_bytes,
        }

    def _upload(self, notes: Notes, resumed: dict[int, ResumedChunk], *, cut: bool) -> UploadResult:
        stream_bytes = self.segments * self.segment_bytes - self.segment_bytes // 2
        argv = [sys.executable, "-m", "scripts.bench.synthetic_stream", str(stream_bytes), *(["--cut"] if cut else [])]
        plan = StreamPlan(
            send_argv=argv,
            sizes=Sizes(self.segment_bytes, CHUNK_SEGMENTS * self.segment_bytes),
            spool=spool_slots(on_disk=False, size_bytes=0, segment_size_bytes=self.segment_bytes, concurrency=4),
            spool_parent=self.directory,
            s3=self._s3(),
            store_facts=self._bucket.probe(self.layout.probe_key),
        )
        upload = StreamUpload(
            plan,
            UploadBoard(lambda index: self.layout.chunk_key(BACKUP_ID, index), resumed),
            notes,
            ChildBoot("scale", "supervisor", LogSettings(level="warning", format="json")),
            owner_label("scale"),
            StopRequest(),
            logs.get_logger(),
            lambda pid, process: None,
        )
        with upload.stored() as result:
            return result

    def _s3(self) -> S3Settings:
        return S3Settings(bucket=self.sink.bucket, endpoint_url=self.sink.endpoint_url, region="us-east-1")

    def _intent(self) -> BackupIntent:
        return BackupIntent(
            backup_id=BACKUP_ID,
            sequence=1,
            kind=Kind.FULL,
            reason=Reason.FIRST,
            store="sink",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            source=SourceIdentity("synthetic", "/synthetic", UUID, UUID),
            snapshot=SnapshotIdentity("synthetic", "/synthetic", UUID, 7, ()),
            previous=None,
            send_parent=None,
            send_parent_path=None,
            protocol=1,
            compressed_data=False,
            segment_size_bytes=self.segment_bytes,
            chunk_size_bytes=CHUNK_SEGMENTS * self.segment_bytes,
            storage_class="STANDARD",
            sse="none",
        )

    def _journal_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.glob("state.db*"))

    def _facts(self, notes: Notes, seconds: float, cpu: float) -> dict[str, Any]:
        return {
            "segments": self.segments,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "supervisor_peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "windows": notes.windows,
        }


def _cpu_seconds() -> float:
    """Return what this process and those of its children that have ended used."""
    mine, below = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + below.ru_utime + below.ru_stime


def _line(found: dict[str, Any], *, head: bool) -> str:
    """Return one size as a line of the table: the cost per segment over all, in its first and in its last part."""
    windows = found["windows"]
    third = max(1, len(windows) // 3)
    columns = {
        "segments": f"{found['segments']}",
        "chunks": f"{found['chunks']}",
        "seconds": f"{found['seconds']:.1f}",
        "us/segment": f"{found['seconds'] / found['segments'] * 1e6:.0f}",
        "CPU us/segment: supervisor": _slope(windows, "supervisor_cpu"),
        "first third": _slope(windows[: third + 1], "supervisor_cpu"),
        "last third": _slope(windows[-third - 1 :], "supervisor_cpu"),
        "children": _slope(windows, "children_cpu"),
        "first third ": _slope(windows[: third + 1], "children_cpu"),
        "last third ": _slope(windows[-third - 1 :], "children_cpu"),
        "supervisor peak MiB": f"{found['supervisor_peak_rss'] / 2**20:.0f}",
        "journal MiB": f"{found['journal_bytes'] / 2**20:.1f}",
        **{name: f"{value:.3g}" for name, value in found.items() if name.endswith(("cpu_seconds", "manifest_bytes"))},
    }
    lines = ["  ".join(columns)] if head else []
    return "\n".join([*lines, "  ".join(value.rjust(len(name)) for name, value in columns.items())])


def _slope(windows: list[dict[str, float]], name: str) -> str:
    """Return microseconds per segment between the first and the last look."""
    if len(windows) < 2:
        return "-"
    first, last = windows[0], windows[-1]
    return f"{(last[name] - first[name]) / (last['segments'] - first['segments']) * 1e6:.0f}"


if __name__ == "__main__":
    main()
