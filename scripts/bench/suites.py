"""What is measured: suites of rows that do the same work, run in interleaved rounds."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.bench import tools
from scripts.bench.fixture import MIB, Filesystem, Fixture, Sendable, delete_subvolume
from scripts.bench.measured import Pipeline, run
from scripts.bench.servers import Certificate, Profile, Seaweed, Sink, Target

LAN_IN_FLIGHT = 4  # b2s's default; tuned peers get 8, which is better for them
PEERS_IN_FLIGHT = 8
WAN = {"latency_ms": 30.0, "rate_mb": 50.0}
CHUNK_SEGMENTS = 6400  # as many as with the default sizes
UPLINK_MIB = 48  # 40 seconds of such a line
WAN_TEXT = "https, 30 ms and 50 MB/s per connection"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a suite's table."""

    name: str
    kind: str  # "b2s", "peer" or "limit"
    pipeline: Callable[[], Pipeline]
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Suite:
    """Rows to compare with each other."""

    name: str
    title: str
    bytes: int  # of the stream
    rows: tuple[Row, ...]
    rounds: int | None = None  # after the first one, which samples memory; None: as many as asked for


class Bench:
    """The fixture and the servers of one call; a context manager in all but name: use `bench`."""

    def __init__(self, stream_bytes: int) -> None:
        # Not "b2s-...": b2s takes a private directory of that name without an owner for a spool left behind.
        self.directory = Path(tempfile.mkdtemp(prefix="bench-of-b2s-", dir="/dev/shm"))
        self.certificate = Certificate.make(self.directory)
        self._closing: list[Callable[[], None]] = [lambda: shutil.rmtree(self.directory, ignore_errors=True)]
        self._sinks: dict[str, Sink] = {}
        try:
            self.fixture = Fixture(self.directory, stream_bytes)
            self._closing.append(self.fixture.close)
            self.target = Filesystem(self.directory, "target-fs", 3 * stream_bytes + 1024 * MIB)
            self._closing.append(self.target.close)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End everything and delete everything, last things first."""
        for close in reversed(self._closing):
            close()
        self._closing.clear()

    def sink(self, name: str, *, https: bool, store: bool = False, wan: bool = False, **line: float) -> Sink:
        """Return a running sink; those that store share what they hold."""
        if name not in self._sinks:
            profile = Profile(name, https, store=store, **(WAN if wan else line))
            root = self.directory / ("stored" if store else f"sink-{name}")
            sink = Sink(profile, root, self.certificate)
            self._sinks[name] = sink
            self._closing.append(sink.close)
        return self._sinks[name]

    def work(self, *names: str) -> Path:
        """Return a directory of this row's own."""
        path = self.directory / "work" / "-".join("".join(c if c.isalnum() else "_" for c in name) for name in names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    # --- suites ---

    def suite(self, name: str) -> Suite:
        """Return a suite; what it needs is made now."""
        return SUITES[name].make(self)

    def limits(self) -> Suite:
        """Return what the machine does at most."""
        full = self.fixture.full
        rows = (
            Row(
                "btrfs send > /dev/null", "limit", lambda: Pipeline([list(full.argv)]), lambda: self.fixture.renew(full)
            ),
            *self._send_rows(full),
            self._receive_row(),
        )
        return Suite("limits", "What the machine does at most", self.fixture.full.bytes, rows)

    def _receive_row(self) -> Row:
        stream = self.directory / "stream"
        if not stream.exists():
            run(Pipeline([list(self.fixture.full.argv)], stdout=str(stream)))
        argv = ["btrfs", "receive", "-q", str(self.target.path / "received")]
        return Row("btrfs receive < file", "limit", lambda: Pipeline([argv], stdin=str(stream)), self._empty_target)

    def _empty_target(self) -> None:
        for name in ("received", ".b2s-received"):
            for directory in (self.target.path / name / "data", self.target.path / name):
                self.target.delete_below(directory) if directory.is_dir() else None
        if (self.target.path / "restored").exists():
            delete_subvolume(self.target.path / "restored")
        self.target.sync()
        (self.target.path / "received").mkdir()

    def _send_rows(self, sendable: Sendable) -> tuple[Row, ...]:
        pipeline = Pipeline([list(sendable.argv), _python("hash_reader")], tool=1)
        return (Row("btrfs send | hashlib", "limit", lambda: pipeline, lambda: self.fixture.renew(sendable)),)

    def backup(self, name: str, line: str, sendable: Sendable) -> Suite:
        """Return backups of one stream by every tool."""
        wan = name.endswith("wan")
        sink = self.sink(name, https=not name.endswith("http"), wan=wan)
        rows = [
            row for tool in tools.TOOLS if not tool.needs_store for row in self._tool_rows(tool, sink, sendable, wan)
        ]
        title = f"Backup over {line}: {sendable.name}, live btrfs send into the tool"
        return Suite(name, title, sendable.bytes, (*self._send_rows(sendable), *rows))

    def _tool_rows(self, tool: tools.Tool, sink: Target, sendable: Sendable, wan: bool) -> list[Row]:
        if not tool.available or (tool.name == "btrfs2s3" and (wan or sendable.name == "incremental")):
            return []
        ours = tool.name.startswith("b2s")
        in_flight = LAN_IN_FLIGHT if ours and not wan else PEERS_IN_FLIGHT
        work = self.work(tool.name, sink.profile.name, sendable.name)
        case = tools.Case(self.fixture, sendable, sink, work, in_flight)

        def prepare() -> None:
            tool.prepare(case)
            self.fixture.sync()

        return [Row(tool.name, "b2s" if ours else "peer", lambda: tool.backup(case), prepare)]

    def resume(self) -> Suite:
        """Return what going on with a backup costs of which everything is stored already."""
        sink = self.sink("resume", https=True)
        case = tools.Case(self.fixture, self.fixture.full, sink, self.work("resume"), LAN_IN_FLIGHT)
        row = Row("b2s, resumed", "b2s", lambda: tools.b2s_when_due(case), lambda: tools.b2s_interrupted(case))
        title = "Resuming over https: every segment made again and hashed, none sent"
        return Suite("resume", title, self.fixture.full.bytes, (*self._send_rows(self.fixture.full), row))

    def tuning(self, name: str, *, wan: bool) -> Suite:
        """Return backups with other segment sizes and concurrencies than the default ones."""
        sink = self.sink(name, https=True, wan=wan)
        rows = [
            self._tuned_row(name, sink, self.fixture, segment_mib, in_flight)
            for segment_mib in (8, 16, 32, 64)
            for in_flight in ((4, 8, 16) if wan else (1, 2, 4, 8))
        ]
        title = f"Sizes and concurrency over {WAN_TEXT if wan else 'https'}"
        return Suite(name, title, self.fixture.full.bytes, tuple(rows), rounds=3)

    def uplink(self) -> Suite:
        """Return small backups over a line of 10 Mbit/s, which all connections share."""
        directory = self.work("uplink")
        fixture = Fixture(directory, UPLINK_MIB * MIB)
        self._closing.append(fixture.close)
        sink = self.sink("uplink", https=True, latency_ms=30.0, line_mb=1.25)
        rows = [
            self._tuned_row("uplink", sink, fixture, segment_mib, in_flight)
            for segment_mib in (5, 32)
            for in_flight in (1, 4)
        ]
        title = "Sizes and concurrency over https, 30 ms, 10 Mbit/s for all connections together"
        return Suite("tuning-uplink", title, fixture.full.bytes, tuple(rows), rounds=1)

    def _tuned_row(self, name: str, sink: Target, fixture: Fixture, segment_mib: int, in_flight: int) -> Row:
        label = f"{segment_mib} MiB x {in_flight}"
        case = tools.Case(fixture, fixture.full, sink, self.work(name, label), in_flight)
        return Row(
            label,
            "b2s",
            lambda: tools.b2s(case, segment_size=segment_mib * MIB, chunk_size=CHUNK_SEGMENTS * segment_mib * MIB),
            lambda: tools.b2s_prepare(case),
        )

    def compressed(self) -> Suite:
        """Return backups of a filesystem compressed with zstd, with its extents sent as they are and unpacked."""
        directory = self.work("compressed")
        fixture = Fixture(directory, self.fixture.full.bytes // 2, "compress=zstd", compressible=True)
        self._closing.append(fixture.close)
        sink = self.sink("compressed", https=True)

        def row(label: str, send: dict[str, object]) -> Row:
            case = tools.Case(fixture, fixture.full, sink, self.work("compressed", label), LAN_IN_FLIGHT)
            return Row(label, "b2s", lambda: tools.b2s(case, send=send), lambda: tools.b2s_prepare(case))

        sent = fixture.compressed_bytes() / 1e6
        title = (
            f"A filesystem compressed with zstd over https: {fixture.full.bytes / 1e6:.0f} MB with protocol 1, "
            f"{sent:.0f} MB with protocol 2 and compressed_data; MB/s are of the same content"
        )
        rows = (row("protocol 1", {"protocol": 1}), row("protocol 2", {"protocol": 2, "compressed_data": True}))
        return Suite("compressed", title, fixture.full.bytes, rows)

    def stored(self) -> Suite:
        """Return backups into a sink that stores, which restic needs."""
        sink = self.sink("stored-https", https=True, store=True)
        rows = [row for tool in tools.TOOLS for row in self._tool_rows(tool, sink, self.fixture.full, wan=False)]
        title = "Backup over https into a sink that stores"
        return Suite("backup-stored", title, self.fixture.full.bytes, tuple(rows))

    def fixed(self) -> Suite:
        """Return what b2s costs when there is next to nothing to do: 1 MiB to send, and nothing due."""
        directory = self.work("fixed")
        fixture = Fixture(directory, MIB)
        self._closing.append(fixture.close)
        sink = self.sink("fixed", https=True)

        def case(row: str, sendable: Sendable) -> tools.Case:
            return tools.Case(fixture, sendable, sink, self.work("fixed", row), LAN_IN_FLIGHT)

        full, incremental, idle = (
            case("full", fixture.full),
            case("incremental", fixture.incremental),
            case("idle", fixture.incremental),
        )
        rows = (
            Row("full backup of 1 MiB", "b2s", lambda: tools.b2s(full), lambda: tools.b2s_prepare(full)),
            Row("incremental", "b2s", lambda: tools.b2s(incremental), lambda: tools.b2s_prepare(incremental)),
            Row("nothing due", "b2s", lambda: tools.b2s_when_due(idle), lambda: tools.b2s_prepare(idle)),
        )
        return Suite("fixed-cost", "What every run costs (CPU seconds per run, not per GiB)", 0, rows)

    def seaweedfs(self) -> Suite:
        """Return backups to a real server."""
        sink = self._seaweed()
        rows = [
            row
            for tool in tools.TOOLS
            if tool.name != "btrfs2s3"
            for row in self._tool_rows(tool, sink, self.fixture.full, wan=False)
        ]
        title = "Backup over http to SeaweedFS: a real server on the same cores"
        return Suite("seaweedfs", title, self.fixture.full.bytes, tuple(rows))

    def _seaweed(self) -> Seaweed:
        server = Seaweed(self.certificate)
        self._closing.append(server.close)
        return server

    def memory(self) -> Suite:
        """Return backups of 1, 10 and 100 GiB: what they occupy must not depend on it."""
        sink = self.sink("memory", https=True)
        rows = [self._memory_row(sink, gib) for gib in (1, 10, 100)]
        return Suite("memory", "Memory and stream length: 1, 10 and 100 GiB over https", 0, tuple(rows), rounds=0)

    def _memory_row(self, sink: Sink, gib: int) -> Row:
        work = self.work("memory", str(gib))
        case = tools.Case(self.fixture, self.fixture.full, sink, work, LAN_IN_FLIGHT)
        return Row(f"{gib} GiB", "b2s", lambda: tools.b2s_synthetic(case, gib << 30), lambda: tools.b2s_prepare(case))

    def restore(self, name: str, *, null: bool, wan: bool = False) -> Suite:
        """Return restores of one stored stream by every tool."""
        key = self._stored_chunk()
        sink = self.sink(name, https=True, store=True, wan=wan)
        received = ["btrfs", "receive", "-q", str(self.target.path / "received")]
        in_flight = PEERS_IN_FLIGHT if wan else LAN_IN_FLIGHT

        def piped(argv: list[str], environment: dict[str, str]) -> Callable[[], Pipeline]:
            found = tools.find(argv[0])
            stages = [[found or argv[0], *argv[1:]], *([] if null else [received])]
            return lambda: Pipeline(stages, environment={**sink.environment, **environment})

        config = self.work(name) / "aws-config"
        config.write_text(
            f"[default]\ns3 =\n  max_concurrent_requests = {PEERS_IN_FLIGHT}\n  multipart_chunksize = 16MB\n"
        )
        source = f"s3://{sink.bucket}/{key}"
        peers = {
            "rclone cat": piped(
                ["rclone", "cat", f":s3:{sink.bucket}/{key}"], tools.rclone_environment(sink, PEERS_IN_FLIGHT)
            ),
            "aws s3 cp (tuned)": piped(
                ["aws", "s3", "cp", source, "-", "--endpoint-url", sink.endpoint_url], {"AWS_CONFIG_FILE": str(config)}
            ),
            "s5cmd cat": piped(
                [
                    "s5cmd",
                    "--endpoint-url",
                    sink.endpoint_url,
                    "cat",
                    "--concurrency",
                    "8",
                    "--part-size",
                    "16",
                    source,
                ],
                {},
            ),
        }
        rows = [
            Row(label, "peer", pipeline, self._empty_target)
            for label, pipeline in peers.items()
            if tools.find(label.split()[0])
        ]
        ours = self._b2s_restore_null(sink, in_flight) if null else self._b2s_restore(name, sink, in_flight)
        limits = () if null else (self._receive_row(),)
        goal = "into a reader that throws away" if null else "into btrfs receive"
        line = WAN_TEXT if wan else "https"
        return Suite(name, f"Restore over {line}, {goal}", self.fixture.full.bytes, (*limits, *ours, *rows))

    def _b2s_restore(self, name: str, sink: Sink, in_flight: int) -> tuple[Row, ...]:
        case = tools.Case(self.fixture, self.fixture.full, sink, self.work("b2s", name), in_flight)
        config = str(tools.b2s_config(case, restore={"concurrency": in_flight}))
        argv = [*tools.b2s_argv(), "--config", config, "restore", "--source", "data", "--verify", "none"]
        argv += ["--target", str(self.target.path / "restored")]
        return (Row("b2s", "b2s", lambda: tools.with_btrfs_times(case, Pipeline([argv])), self._empty_target),)

    def _b2s_restore_null(self, sink: Sink, in_flight: int) -> tuple[Row, ...]:
        argv = [*_python("restore_null"), "--bucket", sink.bucket, "--prefix", "b2s"]
        argv += ["--endpoint-url", sink.endpoint_url, "--concurrency", str(in_flight)]
        return (Row("b2s", "b2s", lambda: Pipeline([argv], environment=sink.environment)),)

    def _stored_chunk(self) -> str:
        """Return the key of a stored full backup of one chunk; b2s makes it the first time."""
        sink = self.sink("setup", https=False, store=True)
        if not sink.keys("b2s/"):
            case = tools.Case(self.fixture, self.fixture.full, sink, self.work("setup"), LAN_IN_FLIGHT)
            tools.b2s_prepare(case)
            run(tools.b2s(case))
        (key,) = (key for key in sink.keys("b2s/") if "/chunks/" in key)
        return key


@dataclass(frozen=True, slots=True)
class SuiteMaker:
    """How to make a suite, and whether it takes so long that it must be asked for."""

    make: Callable[[Bench], Suite]
    long: bool = False


SUITES = {
    "limits": SuiteMaker(lambda bench: bench.limits()),
    "backup-https": SuiteMaker(lambda bench: bench.backup("backup-https", "https", bench.fixture.full)),
    "backup-http": SuiteMaker(lambda bench: bench.backup("backup-http", "http", bench.fixture.full)),
    "backup-wan": SuiteMaker(lambda bench: bench.backup("backup-wan", WAN_TEXT, bench.fixture.full)),
    "incremental-https": SuiteMaker(
        lambda bench: bench.backup("incremental-https", "https", bench.fixture.incremental)
    ),
    "restore-https": SuiteMaker(lambda bench: bench.restore("restore-https", null=False)),
    "restore-wan": SuiteMaker(lambda bench: bench.restore("restore-wan", null=False, wan=True)),
    "restore-null": SuiteMaker(lambda bench: bench.restore("restore-null", null=True)),
    "restore-null-wan": SuiteMaker(lambda bench: bench.restore("restore-null-wan", null=True, wan=True)),
    "resume": SuiteMaker(lambda bench: bench.resume()),
    "compressed": SuiteMaker(lambda bench: bench.compressed()),
    "fixed-cost": SuiteMaker(lambda bench: bench.fixed()),
    "memory": SuiteMaker(lambda bench: bench.memory(), long=True),
    "tuning-lan": SuiteMaker(lambda bench: bench.tuning("tuning-lan", wan=False), long=True),
    "tuning-wan": SuiteMaker(lambda bench: bench.tuning("tuning-wan", wan=True), long=True),
    "tuning-uplink": SuiteMaker(lambda bench: bench.uplink(), long=True),
    "seaweedfs": SuiteMaker(lambda bench: bench.seaweedfs(), long=True),
    "backup-stored": SuiteMaker(lambda bench: bench.stored(), long=True),
}


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", f"scripts.bench.{module}"]


@contextmanager
def bench(stream_bytes: int) -> Iterator[Bench]:
    """Set everything up, and take it down whatever happens."""
    os.environ["PYTHONPATH"] = str(tools.REPOSITORY)
    made = Bench(stream_bytes)
    try:
        yield made
    finally:
        made.close()
