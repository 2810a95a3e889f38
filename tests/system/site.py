"""A host with one source on btrfs, a bucket, and a config: what the main job needs and nothing else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.parts import invariants
from tests.parts.loopfs import LoopFilesystem
from tests.parts.servers import CANARY_SECRET, REGION, S3Server
from tests.system.commands import Caller, Done

MIB = 1 << 20
SOURCE = "data"
PREFIX = "hosts/site"


class Site:
    """The source host.

    Attributes:
        source: The subvolume that is backed up.
        b2s: Calls b2s with this host's environment.
    """

    def __init__(
        self,
        directory: Path,
        server: S3Server,
        bucket: str,
        filesystem: LoopFilesystem,
        **s3: Any,
    ) -> None:
        self.before = invariants.observe()
        self.directory = directory
        self.server = server
        self.bucket = bucket
        self.client = server.client()
        self.filesystem = filesystem
        self.source = filesystem.subvolume(SOURCE)
        self.snapshots = filesystem.path / "snapshots"
        self.config = directory / "config.yaml"
        self.state = directory / "state"
        self.b2s = Caller(directory, server)
        self.settings: dict[str, Any] = {
            "sources": [{"name": SOURCE, "path": str(self.source)}],
            "snapshots": {"base_dir": str(self.snapshots)},
            "state_path": str(self.state / "state.db"),
            "lock_path": str(self.state / "b2s.lock"),
            "s3": {
                "bucket": bucket,
                "prefix": PREFIX,
                "region": REGION,
                "endpoint_url": server.endpoint_url,
                "retry_for": "10s",
                **s3,
            },
        }

    def backup(self, *options: str, **how: Any) -> Done:
        """Run ``b2s backup`` with the settings as they are now; it must exit 0."""
        return self.b2s.succeed("backup", *self.configured(), *options, **how)

    def configured(self) -> tuple[str, str]:
        """Write the config and return the option that names it."""
        self.config.write_text(json.dumps(self.settings))  # JSON is YAML
        return "--config", str(self.config)

    def where(self) -> list[str]:
        """Return the options that name the bucket to a host without a config."""
        options = {"bucket": self.bucket, "prefix": PREFIX, "region": REGION, "endpoint-url": self.server.endpoint_url}
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def manifests(self) -> list[dict[str, Any]]:
        """Return all manifests, the oldest first, read without b2s."""
        keys = invariants.object_keys(self.client, self.bucket, f"{PREFIX}/{SOURCE}/manifests/")
        return [json.loads(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()) for key in keys]

    def assert_clean(self) -> None:
        """Assert that no process, spool, lock, upload or secret was left anywhere."""
        invariants.no_leftovers(self.before, self.state / "b2s.lock")
        assert invariants.open_uploads(self.client, self.bucket) == []
        places = [path for path in (self.b2s.said, self.state) if path.exists()]
        invariants.assert_no_secret(CANARY_SECRET, *places, json.dumps(self.manifests()))


def facts_of(subvolume: Path) -> dict[str, str]:
    """Return what ``btrfs subvolume show`` says: "UUID", "Parent UUID", "Received UUID", "Flags" and more."""
    command = ["btrfs", "subvolume", "show", str(subvolume)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pairs = (line.partition(":") for line in shown.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def receive_chain(site: Site, manifests: list[dict[str, Any]], directory: Path) -> list[Path]:
    """Receive backups, the oldest first, with an S3 client and `btrfs receive`, as the README tells; no b2s."""
    directory.mkdir()
    received = []
    for manifest in manifests:
        receive = subprocess.Popen(
            ["btrfs", "receive", "-q", "-C", directory], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert receive.stdin is not None
        assert receive.stderr is not None
        prefix = f"{PREFIX}/{SOURCE}/chunks/{manifest['backup_id']}/"
        with receive, receive.stdin as pipe:
            for key in _listed(site, prefix):
                body = site.client.get_object(Bucket=site.bucket, Key=key)["Body"]
                for block in body.iter_chunks(MIB):
                    pipe.write(block)
        assert receive.returncode == 0
        received.append(directory / manifest["snapshot"]["name"])
    return received


def _listed(site: Site, prefix: str) -> list[str]:
    return invariants.object_keys(site.client, site.bucket, prefix)


MakeSite = Callable[..., Site]
