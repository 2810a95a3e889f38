"""Restore a backup through b2s's own pipeline into a reader that throws everything away.

    python -m scripts.bench.restore_null --bucket B --prefix P --endpoint-url U --concurrency N

`b2s restore` without `btrfs receive`, which takes a whole core: shows what downloading and verifying alone reach.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys

DISCARD = "import os, sys\nwhile os.splice(0, 1, 1 << 20): pass"


def main() -> None:
    """Download the newest backup of the source `data`."""
    from b2s.adapters import logs
    from b2s.adapters.children import owner_label
    from b2s.adapters.s3 import Bucket
    from b2s.adapters.spool import MEMORY_DIRECTORY
    from b2s.core.fetch_board import segments_of
    from b2s.core.layout import Layout
    from b2s.core.manifest_codec import decode
    from b2s.core.settings import LogSettings
    from b2s.core.store_settings import S3Settings
    from b2s.processes.child import ChildBoot, process_context
    from b2s.processes.signals import StopRequest
    from b2s.restore.pipeline import DownloadPlan, StreamDownloads

    parser = argparse.ArgumentParser()
    for name in ("--bucket", "--prefix", "--endpoint-url"):
        parser.add_argument(name, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    options = parser.parse_args()
    s3 = S3Settings(bucket=options.bucket, prefix=options.prefix, endpoint_url=options.endpoint_url, region="us-east-1")
    bucket = Bucket.connect(s3)
    process_context()  # as `b2s restore` does: it gets ready while we talk to the store
    layout = Layout(options.prefix, "data")
    newest = max(entry.key for entry in bucket.list_objects(layout.manifests_prefix))
    sequence = layout.parse_manifest_key(newest)
    assert sequence is not None
    manifest = decode(bucket.get(newest, 1 << 27), key_sequence=sequence, source="data")
    keys = [layout.absolute(chunk.key) for chunk in manifest.chunks]
    objects = [(key, bucket.head(key).etag) for key in keys]
    log = LogSettings(level="warning", format="json")
    with (
        open(os.devnull, "wb") as null,
        StreamDownloads(
            DownloadPlan.of([manifest], s3, options.concurrency, MEMORY_DIRECTORY, bucket.round_trip_seconds),
            ChildBoot(f"bench-{secrets.token_hex(4)}", "supervisor", log),
            owner_label("bench"),
            StopRequest(),
            logs.get_logger(),
            lambda pid, process: None,
        ) as downloads,
    ):
        fed = downloads.feed(
            segments_of(manifest, objects),
            [sys.executable, "-S", "-E", "-c", DISCARD],
            inspect=lambda first: None,
            stdout=null.fileno(),
        )
    assert fed.stream_bytes == manifest.stream.bytes


if __name__ == "__main__":
    main()
