"""What the bucket holds, read and received without b2s: manifests by GET, chunks into plain `btrfs receive`."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.parts.invariants import object_keys
from tests.parts.tree import Tree, tree_digest

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BLOCK = 1 << 20


class StoredSource:
    """One source in a bucket; `receive` needs a filesystem that is not the source's."""

    def __init__(self, client: S3Client, bucket: str, prefix: str, source: str) -> None:
        self.client = client
        self.bucket = bucket
        self.root = f"{prefix}/{source}" if prefix else source

    def manifests(self) -> list[dict[str, Any]]:
        """Return the committed backups by sequence; their hash chain must hold."""
        found: list[dict[str, Any]] = []
        previous: str | None = None
        for key in object_keys(self.client, self.bucket, f"{self.root}/manifests/"):
            body = self.get(key)
            manifest = json.loads(body)
            assert key.endswith(f"/{manifest['sequence']:08d}.json"), key
            assert manifest["sequence"] == len(found) + 1, f"{key}: sequence numbers have a gap"
            named = manifest["previous"]
            assert (named["manifest_sha256"] if named else None) == previous, f"{key}: the hash chain is broken"
            previous = hashlib.sha256(body).hexdigest()
            found.append(manifest)
        return found

    def get(self, key: str) -> bytes:
        """Return a whole object."""
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    def unreferenced(self) -> list[str]:
        """Return the chunks that no manifest names."""
        named = {f"{self.root}/{chunk['key']}" for manifest in self.manifests() for chunk in manifest["chunks"]}
        return [key for key in object_keys(self.client, self.bucket, f"{self.root}/chunks/") if key not in named]

    def stream(self, manifest: dict[str, Any]) -> bytes:
        """Return the stream of one backup, every segment compared with its hash."""
        chunks = []
        size = manifest["segment_size_bytes"]
        for chunk in manifest["chunks"]:
            body = self.get(f"{self.root}/{chunk['key']}")
            assert len(body) == chunk["bytes"], chunk["key"]
            hashes = [hashlib.sha256(body[start : start + size]).hexdigest() for start in range(0, len(body), size)]
            assert hashes == chunk["segment_sha256"], f"{chunk['key']}: stored bytes are not what the manifest says"
            chunks.append(body)
        stream = b"".join(chunks)
        assert len(stream) == manifest["stream"]["bytes"]
        return stream

    def receive(self, manifest: dict[str, Any], filesystem: Path) -> Tree:
        """Receive one backup (its send parent must be there already) and return its digest."""
        directory = filesystem / f"{manifest['sequence']:08d}"
        directory.mkdir()
        done = subprocess.run(
            ["btrfs", "receive", directory], input=self.stream(manifest), capture_output=True, check=False
        )
        assert done.returncode == 0, f"sequence {manifest['sequence']}: {done.stderr.decode(errors='replace')}"
        (received,) = directory.iterdir()
        return tree_digest(received)

    def forget_received(self, sequence: int, filesystem: Path) -> None:
        """Delete what was received of one backup, if anything: no later one needs it."""
        for received in (filesystem / f"{sequence:08d}").glob("*"):
            subprocess.run(["btrfs", "subvolume", "delete", received], capture_output=True, check=True)
