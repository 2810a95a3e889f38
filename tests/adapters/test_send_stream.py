"""The walker of send streams, on what the kernel really sends."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from b2s.core.stream import StreamFrames, StreamVerdict
from tests.parts.loopfs import LoopFilesystem

MIB = 1 << 20


def send(snapshot: Path, *options: str | Path) -> bytes:
    """Return the stream of one snapshot."""
    return subprocess.run(["btrfs", "-q", "send", *options, snapshot], stdout=subprocess.PIPE, check=True).stdout


def walk(stream: bytes, cuts: list[int]) -> StreamVerdict:
    """Return the verdict on a stream fed in pieces."""
    frames = StreamFrames()
    position = 0
    for cut in [*sorted(cuts), len(stream)]:
        frames.feed(memoryview(stream)[position:cut])
        position = cut
    return frames.finish()


@pytest.mark.parametrize("options", [["--proto", "1"], ["--proto", "2"], ["--proto", "2", "--compressed-data"]])
def test_real_streams(loopfs: Callable[..., LoopFilesystem], options: list[str]) -> None:
    """Full and incremental streams of both protocols are whole as sent, and never when shorter or longer."""
    filesystem = loopfs(options=("compress=zstd",))
    data = filesystem.subvolume("data")
    for number in range(300):
        (data / f"file{number}").write_bytes(f"{number}".encode())
    (data / "compressible").write_bytes(b"b2s " * MIB)
    first = filesystem.snapshot(data, "first")
    (data / "random").write_bytes(random.Random(1).randbytes(3 * MIB))
    second = filesystem.snapshot(data, "second")

    for stream in (send(first, *options), send(second, *options, "-p", first), send(second, *options, "-p", second)):
        size = len(stream)
        one_view = walk(stream, [])
        assert (one_view.whole, one_view.detail, one_view.stream_bytes) == (True, "", size)
        chance = random.Random(size)
        for _try in range(20):
            assert walk(stream, [chance.randrange(size) for _cut in range(200)]) == one_view
            assert not walk(stream[: chance.randrange(size)], []).whole
        assert "bytes follow" in walk(stream + stream, [size - 3, size + 5]).detail
        assert not walk(stream[:-1], []).whole
