"""How much faster eight uploaders are than one, on a server that holds every part for 200 ms.

    python -m scripts.bench.concurrency [--hold SECONDS] [--size MIB] [CONCURRENCY...]      as root

Prints seconds and rate for each concurrency (1 and 8 unless named), and the ratio of the first to the last. The bar:
8 is at least 6 times as fast as 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from b2s.core.units import format_rate
from tests.parts.loopfs import LoopFilesystem

REPOSITORY = Path(__file__).parents[2]
MIB = 1 << 20
SEGMENT_MIB = 5
BUCKET = "bench-bucket"


@contextmanager
def sink(directory: Path, hold_seconds: float) -> Iterator[str]:
    """Run a sink in which every part takes its time, and yield its endpoint."""
    options = ["--root", str(directory), "--bucket", BUCKET, "--hold-ms", str(1000 * hold_seconds)]
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.bench.sink", *options],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    finally:
        process.terminate()
        process.communicate()


def backup(source: Path, endpoint: str, concurrency: int, directory: Path) -> tuple[float, int]:
    """Make a full backup; return the seconds from the first process started to the last chunk confirmed, and bytes."""
    config = directory / "config.json"
    settings = {
        "sources": [{"name": "bench", "path": str(source)}],
        "snapshots": {"base_dir": str(source.parent / "snapshots"), "retain": 1},
        "state_path": str(directory / "state.db"),
        "lock_path": str(directory / "lock"),
        "s3": {
            "bucket": BUCKET,
            "prefix": f"concurrency-{concurrency}",
            "region": "us-east-1",
            "endpoint_url": endpoint,
            "segment_size": f"{SEGMENT_MIB}MiB",
            "chunk_size": f"{SEGMENT_MIB * 100}MiB",
            "concurrency": concurrency,
        },
    }
    config.write_text(json.dumps(settings))
    credentials = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "b2s", "backup", "--full", "--log-format", "json", "--config", str(config)],
        env={**os.environ, **credentials},
        capture_output=True,
        text=True,
        check=False,
    )
    events = [json.loads(line) for line in done.stderr.splitlines()]
    metrics = [event for event in events if event["event"] == "backup_metrics"]
    if done.returncode != 0 or not metrics:
        sys.exit(f"b2s exited {done.returncode}: {done.stderr[-2000:]}")
    return metrics[0]["elapsed_seconds"], metrics[0]["total_bytes"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hold", type=float, default=0.2, metavar="SECONDS")
    parser.add_argument("--size", type=int, default=800, metavar="MIB", help="size of the stream")
    parser.add_argument("concurrency", type=int, nargs="*", default=[1, 8])
    options = parser.parse_args()
    times = []
    with (
        LoopFilesystem(size_bytes=(2 * options.size + 300) * MIB) as filesystem,
        tempfile.TemporaryDirectory() as directory,
        sink(Path(directory, "sink"), options.hold) as endpoint,
    ):
        source = filesystem.subvolume("source")
        for number in range(options.size):
            (source / f"{number:05}").write_bytes(os.urandom(MIB))
        for concurrency in options.concurrency:
            seconds, size = backup(source, endpoint, concurrency, Path(directory))
            times.append(seconds)
            print(f"concurrency {concurrency:3}: {seconds:6.1f} s, {format_rate(size / seconds)}", flush=True)
    print(f"ratio {times[0] / times[-1]:.2f} (concurrency {options.concurrency[-1]} to {options.concurrency[0]})")


if __name__ == "__main__":
    main()
