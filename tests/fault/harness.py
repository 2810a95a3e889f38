"""The rig of every fault test: a btrfs source, a store behind the fault proxy, a config, runs, and one check.

`Rig.check` is the shared invariant check of all of them: whatever a test did, afterwards a clean run exits 0, what is
committed restores equal, and nothing is left.
"""

from __future__ import annotations

import json
import random
import secrets
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from tests.fault.runs import RUN_SECONDS_MAX, Run, b2s_command, cron_environment
from tests.fault.stored import StoredSource
from tests.parts import invariants, workspace
from tests.parts.loopfs import LoopFilesystem
from tests.parts.proxy import FaultProxy
from tests.parts.servers import REGION, S3Server
from tests.parts.tree import Tree, differences, tree_digest

MIB = 1 << 20
SEGMENT = 5 * MIB
SOURCE = "data"


class Rig:
    """Everything one fault test needs, and the record of what it did.

    Attributes:
        filesystem: Holds the source and the snapshots.
        prefix: Its own, in a bucket that others use too.
        source: The subvolume that is backed up.
        proxy: All traffic goes through it.
        stored: What the bucket holds of the source.
        runs: Every invocation, the newest last.
    """

    def __init__(
        self,
        server: S3Server,
        proxy: FaultProxy,
        bucket: str,
        directory: Path,
        make_filesystem: Callable[..., LoopFilesystem],
        *,
        data_bytes: int = 12 * MIB,
        **config: Any,
    ) -> None:
        self.server = server
        self.proxy = proxy
        self.bucket = bucket
        self.prefix = f"hosts/{secrets.token_hex(4)}"  # one bucket for all: SeaweedFS reserves volumes for each
        self.directory = directory
        self.client = server.client()
        self._make_filesystem = make_filesystem
        self.filesystem = make_filesystem(size_bytes=max(512 * MIB, 3 * data_bytes))
        self.source = self.filesystem.subvolume(SOURCE)
        self.snapshots = self.filesystem.path / "snapshots"
        self.stored = StoredSource(self.client, bucket, self.prefix, SOURCE)
        self.environment = cron_environment(server, directory)
        self.runs: list[Run] = []
        self.states: list[Tree] = []  # of the source, the newest last
        self._target: LoopFilesystem | None = None
        self._received: list[Tree] = []  # by sequence
        self._before = invariants.observe().processes
        self.settings = self._settings(config)
        self.config = directory / "config.yaml"
        self.write_config()
        self.fill(data_bytes)

    def _settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        base: dict[str, Any] = {
            "state_path": str(self.directory / "state/state.db"),
            "lock_path": str(self.directory / "run/b2s.lock"),
            "snapshots": {"base_dir": str(self.snapshots), "retain": 2},
            "sources": [{"name": SOURCE, "path": str(self.source)}],
            "spool": {"enabled": True, "dir": str(self.directory / "spool"), "size": 4 * SEGMENT},
            "s3": {
                "bucket": self.bucket,
                "region": REGION,
                "prefix": self.prefix,
                "endpoint_url": self.proxy.endpoint_url,
                "segment_size": SEGMENT,
                "chunk_size": 2 * SEGMENT,
                "concurrency": 2,
                "retry_for": "30s",
            },
        }
        return _merged(base, config)

    def write_config(self, **changes: Any) -> None:
        """Write the config file, with changes that stay: ``rig.write_config(s3={"retry_for": "2s"})``."""
        self.settings = _merged(self.settings, changes)
        self.config.write_text(json.dumps(self.settings))  # JSON is YAML

    # --- the source ----------------------------------------------------------------------------------

    def fill(self, data_bytes: int, seed: int = 1, *, replace: bool = False) -> None:
        """Put random files into the source, in the place of all others if asked to, and note its state."""
        rng = random.Random(seed)
        for older in self.source.glob("files-*") if replace else ():
            shutil.rmtree(older)
        directory = self.source / f"files-{len(self.states)}"
        directory.mkdir()
        for number in range(0, data_bytes, MIB):
            (directory / f"{number // MIB:04}").write_bytes(rng.randbytes(min(MIB, data_bytes - number)))
        (self.source / "touched").write_bytes(rng.randbytes(3000))
        self.note()

    def note(self) -> None:
        """Remember the source as it is now: a backup of it must restore to exactly this."""
        self.states.append(tree_digest(self.source))

    # --- runs ----------------------------------------------------------------------------------------

    def start(
        self,
        *arguments: str,
        command: str = "backup",
        before: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> Run:
        """Start ``b2s backup`` with the config; `before` is put in front of the command line (strace)."""
        log = self.directory / f"run-{len(self.runs):03}.log"
        words = [*before, *b2s_command(command, "--config", str(self.config), *arguments)]
        run = Run(words, {**self.environment, **(environment or {})}, log, **popen)
        self.runs.append(run)
        return run

    def run(self, *arguments: str, seconds: float = RUN_SECONDS_MAX, **how: Any) -> Run:
        """Start it and wait for its end."""
        run = self.start(*arguments, **how)
        run.wait(seconds)
        return run

    def run_clean(self, *arguments: str) -> Run:
        """Run it; it must exit 0 and say so last."""
        run = self.run(*arguments)
        assert run.process.returncode == 0, run.tail()
        assert run.last["event"] == "run_finished", run.last
        assert run.last["exit_code"] == 0, run.last
        return run

    # --- what is left --------------------------------------------------------------------------------

    @property
    def state_path(self) -> Path:
        """The state file."""
        return Path(self.settings["state_path"])

    @property
    def lock_path(self) -> Path:
        """The lock file."""
        return Path(self.settings["lock_path"])

    @property
    def spool_directory(self) -> Path:
        """The directory of spools on disk."""
        return Path(self.settings["spool"]["dir"])

    def open_uploads(self) -> list[tuple[str, str]]:
        """Return the open multipart uploads of the source."""
        return invariants.open_uploads(self.client, self.bucket, self.prefix)

    def own_snapshots(self) -> list[str]:
        """Return the names in the snapshot directory."""
        return sorted(path.name for path in self.snapshots.iterdir()) if self.snapshots.exists() else []

    def part_bytes(self) -> int:
        """Return the bytes of chunk parts the proxy has received, repeated and broken ones too."""
        return sum(call.request_bytes for call in self.proxy.history("UploadPart", key="/chunks/"))

    def assert_failed(self, run: Run, exit_code: int = 1) -> dict[str, Any]:
        """Assert that a run failed as it should, and that its last event tells why; return that event."""
        assert run.process.returncode == exit_code, run.tail()
        last = run.last
        assert last["event"] == "run_finished", last
        assert last["exit_code"] == exit_code, last
        assert last["error"], last
        return last

    def assert_nothing_runs(self) -> None:
        """Assert that neither a process nor a lock nor a spool of a run is there: true after every orderly end."""
        left: list[str] = []

        def nothing() -> bool:
            left[:] = [*self._processes_left(), *(str(path) for path in self._paths_left())]
            return not left

        try:
            workspace.poll(nothing, seconds=5, what="nothing is left")
        except TimeoutError:
            raise AssertionError(f"left behind: {left}") from None

    def _processes_left(self) -> list[str]:
        found = []
        for process in workspace.own_processes():
            try:
                if (process.pid, process.create_time()) not in self._before:
                    found.append(f"{process.pid} {' '.join(process.cmdline())}")
            except psutil.Error:
                continue
        return found

    def _paths_left(self) -> list[Path]:
        # Spools in memory are told by their run: others run b2s on this host too.
        ids = {event.get("run_id") for run in self.runs for event in run.events()[:1]}  # none: it had not even begun
        in_memory = [Path(f"/dev/shm/b2s-{run_id}") for run_id in ids]
        wanted = [self.lock_path, *self.spool_directory.glob("b2s-*"), *in_memory]
        return [path for path in wanted if path.exists() or path.is_symlink()]

    def check(self, *, once: bool = False, unreferenced: bool = False, forgotten: bool = False) -> None:
        """Run once more without a fault, then assert every invariant.

        Args:
            once: With `--once`: what was changed since the last backup is not due otherwise.
            unreferenced: Completed chunks of a backup that was given up may be there.
            forgotten: The state was lost: a snapshot of ours whose backup nobody remembers goes when its turn comes.
        """
        self.proxy.clear()
        self.proxy.refusing = False
        self.proxy.latency_seconds = 0.0
        self.proxy.bytes_per_second = None
        self.run_clean(*(["--once"] if once else []))
        self.assert_nothing_runs()
        assert self.open_uploads() == []
        assert unreferenced or self.stored.unreferenced() == []
        self._check_snapshots(forgotten)
        self._check_state()
        self.check_restores()
        self.assert_no_secret()

    def check_restores(self) -> None:
        """Receive what was not received yet; every backup equals a state of the source, the last one the last."""
        if self._target is None:
            self._target = self._make_filesystem(size_bytes=self.filesystem.image.stat().st_size)
        manifests = self.stored.manifests()
        for manifest in manifests[len(self._received) :]:
            self._received.append(self.stored.receive(manifest, self._target.path))
            self.stored.forget_received(manifest["sequence"] - 1, self._target.path)  # a long sweep would fill it
        assert manifests, "nothing is committed"
        newest = differences(self.states[-1], self._received[-1])
        assert newest == [], newest[:10]
        for number, tree in enumerate(self._received, 1):
            assert any(not differences(state, tree) for state in self.states), f"backup {number} is no state we had"

    def _check_snapshots(self, forgotten: bool) -> None:
        committed = {manifest["snapshot"]["name"] for manifest in self.stored.manifests()}
        names = self.own_snapshots()
        assert forgotten or set(names) <= committed, f"stray snapshots: {set(names) - committed}"
        assert len(names) <= self.settings["snapshots"]["retain"], names
        for name in names:
            shown = subprocess.run(
                ["btrfs", "property", "get", self.snapshots / name, "ro"], capture_output=True, text=True, check=True
            )
            assert shown.stdout.strip() == "ro=true", name

    def _check_state(self) -> None:
        with closing(sqlite3.connect(f"file:{self.state_path}?mode=ro", uri=True)) as state:
            for table in ("backup", "chunk", "part", "child"):
                (count,) = state.execute(f"SELECT count(*) FROM {table}").fetchone()
                assert count == 0, f"the journal still has {count} rows in {table}"
            (announced,) = state.execute("SELECT count(*) FROM snapshot WHERE uuid IS NULL").fetchone()
            assert announced == 0, "a snapshot is announced for ever"
        assert self.state_path.stat().st_mode & 0o777 == 0o600
        assert self.state_path.parent.stat().st_mode & 0o777 == 0o700

    def assert_no_secret(self) -> None:
        """Assert that the secret is in no log, state, spool, manifest or command line; true after every test."""
        secret = self.server.secret_key
        for run in self.runs:
            invariants.assert_no_secret(secret, *run.command_lines)
        invariants.assert_no_secret(secret, self.directory)  # logs, config, state, spool
        for manifest in self.stored.manifests():
            invariants.assert_no_secret(secret, json.dumps(manifest))


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` put over it, mappings into mappings."""
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return merged
