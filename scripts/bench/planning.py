"""Measure what planning costs: 50 sources with 500 backups each, from a warm state, nothing due and everything due.

    PYTHONPATH=. python -m scripts.bench.planning [--sources 50] [--backups 500]

The sources are real subvolumes with a real snapshot each; the bucket is a small server in another process that
answers LIST from memory. Prints one JSON document: CPU seconds of `make_plan` in this process, and the requests made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4
from xml.sax.saxutils import escape

from b2s.adapters import btrfs, host
from b2s.adapters.state import State
from b2s.backup.run import BackupOptions, make_plan
from b2s.backup.run_parts import store_name
from b2s.core import summary_json
from b2s.core.layout import Layout, new_backup_id
from b2s.core.manifest import Host, SnapshotIdentity, SourceIdentity
from b2s.core.model import Kind, SubvolumeFacts
from b2s.core.settings import Settings
from b2s.core.summary_json import CachedSummary
from b2s.core.world import BackupSummary, ChunkSummary
from tests.parts.loopfs import LoopFilesystem

CHAIN_LENGTH = 24  # weekly incrementals; the next full is due two weeks later
WEEK = timedelta(days=7)


def history(name: str, count: int, newest_at: datetime, owner: Host, snapshot: SubvolumeFacts) -> list[BackupSummary]:
    """Return a source's committed backups, the newest one of `snapshot`."""
    made: list[BackupSummary] = []
    for sequence in range(1, count + 1):
        full = (count - sequence) % CHAIN_LENGTH == CHAIN_LENGTH - 1 or not made
        kind = Kind.FULL if full else Kind.INCREMENTAL
        created_at = newest_at - (count - sequence) * WEEK
        backup_id = new_backup_id(created_at, kind, f"{sequence:08x}")
        uuid = snapshot.uuid if sequence == count else str(uuid4())
        made.append(
            BackupSummary(
                manifest_sha256=f"{sequence:064x}",
                backup_id=backup_id,
                sequence=sequence,
                previous=made[-1].link if made else None,
                kind=kind,
                created_at=created_at,
                committed_at=created_at,
                host=owner,
                source=SourceIdentity(name, snapshot.path, snapshot.parent_uuid or "", snapshot.filesystem_uuid),
                snapshot=SnapshotIdentity(f"{name}.{backup_id}", snapshot.path, uuid, snapshot.ctransid, ()),
                send_parent=None if full else made[-1].as_send_parent(),
                stream_bytes=1000,
                storage_class="STANDARD",
                chunks=(ChunkSummary(f"chunks/{backup_id}/000000", 1000, etag_of(sequence), "c-1"),),
            )
        )
    return made


def etag_of(sequence: int) -> str:
    """Return a made-up ETag."""
    return f"{sequence:032x}"


def keep(state: State, store: str, name: str, backups: list[BackupSummary]) -> None:
    """Fill the cache as runs would have."""
    fulls = [backup.sequence for backup in backups if backup.kind is Kind.FULL]
    for backup in backups:
        cached = CachedSummary(backup)
        if backup is backups[-1]:
            cached = CachedSummary(backup, fulls[-1], backup.sequence - fulls[-1] + 1)
        body = summary_json.encode(cached)
        state.cache_manifest(store, name, backup.sequence, etag_of(backup.sequence), body)


def serve(objects: list[tuple[str, str]], ready: Connection) -> None:
    """Answer LIST from memory; /requests tells how many there were."""
    counted = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            nonlocal counted
            parts = urlsplit(self.path)
            if parts.path == "/requests":
                body = str(counted).encode()
            else:
                counted += 1
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                body = page(objects, query.get("prefix", ""), query.get("start-after", "")).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ready.send(server.server_address[1])
    server.serve_forever()


def page(objects: list[tuple[str, str]], prefix: str, start_after: str) -> str:
    """Return one page that shows everything; no source of the default size has more than 1,000 keys to show."""
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{etag}&quot;</ETag><Size>1000</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for key, etag in objects
        if key.startswith(prefix) and key > start_after
    )
    return f'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>'


def measure(directory: Path, sources: int, backups: int, age: timedelta) -> dict[str, Any]:
    """Plan once with the newest backups of this age."""
    with LoopFilesystem() as filesystem:
        (filesystem.path / "snapshots").mkdir()
        named = [f"source-{index:02d}" for index in range(sources)]
        snapshots = {}
        for name in named:
            path = filesystem.subvolume(name)
            snapshots[name] = btrfs.create_snapshot(str(path), str(filesystem.path / "snapshots" / name))
            (path / "changed").write_text("since")
        store_objects: list[tuple[str, str]] = []
        owner = host.host_identity(str(directory / "host-id"))
        made = {name: history(name, backups, datetime.now(UTC) - age, owner, snapshots[name]) for name in named}
        for name in named:
            layout = Layout("bench", name)
            for backup in made[name]:
                store_objects.append((layout.absolute(backup.chunks[0].key), etag_of(backup.sequence)))
                store_objects.append((layout.manifest_key(backup.sequence), etag_of(backup.sequence)))
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(sorted(store_objects), theirs), daemon=True)
        server.start()
        try:
            endpoint = f"http://127.0.0.1:{ours.recv()}"
            settings = settings_for(directory, filesystem.path, named, endpoint)
            with State.open(settings.state_path, owner.id) as state:
                for name in named:
                    keep(state, store_name(settings.s3), name, made[name])
            began, cpu = time.monotonic(), time.process_time()
            decisions = make_plan(settings, BackupOptions()).plan
            cpu, elapsed = time.process_time() - cpu, time.monotonic() - began
            requests = int(urllib.request.urlopen(f"{endpoint}/requests").read())
        finally:
            server.kill()
            server.join()
    outcomes = sorted({f"{decision.action}: {decision.reason}" for decision in decisions})
    return {
        "decisions": outcomes,
        "cpu_seconds": round(cpu, 3),
        "elapsed_seconds": round(elapsed, 3),
        "requests_per_source": requests / sources,
    }


def settings_for(directory: Path, filesystem: Path, named: list[str], endpoint: str) -> Settings:
    """Return a config with these sources."""
    fields = {
        "sources": [{"name": name, "path": str(filesystem / name)} for name in named],
        "snapshots": {"base_dir": str(filesystem / "snapshots")},
        "state_path": str(directory / endpoint.rpartition(":")[2] / "state.db"),
        "lock_path": str(directory / "b2s.lock"),
        "s3": {"bucket": "bench", "prefix": "bench", "endpoint_url": endpoint, "region": "us-east-1"},
    }
    return Settings.model_validate(fields)


def main() -> None:
    """Measure both cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=50)
    parser.add_argument("--backups", type=int, default=500)
    chosen = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "NO_PROXY": "127.0.0.1"}
    from tests.parts import workspace

    directory = workspace.make_directory("planning")
    try:
        result = {
            "sources": chosen.sources,
            "backups_each": chosen.backups,
            "nothing_due": measure(directory, chosen.sources, chosen.backups, timedelta(days=1)),
            "everything_due": measure(directory, chosen.sources, chosen.backups, timedelta(days=8)),
        }
    finally:
        workspace.remove(directory)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
