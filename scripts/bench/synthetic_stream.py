"""Write a btrfs send stream of any length, at gigabytes a second: what scale is tested with.

    python -m scripts.bench.synthetic_stream BYTES [--seed N] [--cut]

A valid stream that `btrfs receive` takes: one subvolume with one file, whose first MiB is written over and over with
the same pseudo-random pages. Every block of writes is followed by a small one that carries its number, so no two
stretches of the stream are the same. Deterministic: the same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import os
import random
import struct
from collections.abc import Iterator

WRITE_BYTES = 48 * 1024  # what the kernel puts into one command of protocol 1
WRITES_PER_BLOCK = 21
COUNTER_OFFSET = WRITE_BYTES * WRITES_PER_BLOCK
FILE = b"data"

# Source: Linux fs/btrfs/send.h (6.6), read 2026-11.
_SUBVOL, _MKFILE, _RENAME, _WRITE, _END = 1, 3, 9, 15, 21
_UUID, _CTRANSID, _INODE, _PATH, _PATH_TO, _OFFSET, _DATA = 1, 2, 3, 15, 16, 18, 19
_COMMAND = struct.Struct("<IHI")
_ATTRIBUTE = struct.Struct("<HH")
_U64 = struct.Struct("<Q")
_END_BYTES = _COMMAND.size


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C as btrfs send computes it: from 0, not inverted."""
    value = 0
    for byte in data:
        value = (value >> 8) ^ _TABLE[(value ^ byte) & 0xFF]
    return value


def command(kind: int, *attributes: tuple[int, bytes]) -> bytes:
    """Return one command with its attributes and its CRC."""
    payload = b"".join(_ATTRIBUTE.pack(name, len(value)) + value for name, value in attributes)
    return _COMMAND.pack(len(payload), kind, crc32c(_COMMAND.pack(len(payload), kind, 0) + payload)) + payload


def write(offset: int, data: bytes) -> bytes:
    """Return the command that writes `data` at `offset`."""
    return command(_WRITE, (_PATH, FILE), (_OFFSET, _U64.pack(offset)), (_DATA, data))


def opening(name: str = "synthetic") -> bytes:
    """Return the stream's header and the commands that make the subvolume and its file."""
    return b"".join(
        (
            b"btrfs-stream\0" + struct.pack("<I", 1),
            command(_SUBVOL, (_PATH, name.encode()), (_UUID, b"b2s-synthetic-00"), (_CTRANSID, _U64.pack(7))),
            command(_MKFILE, (_PATH, b"o257-7-0"), (_INODE, _U64.pack(257))),
            command(_RENAME, (_PATH, b"o257-7-0"), (_PATH_TO, FILE)),
        )
    )


def pieces(stream_bytes: int, seed: int = 6) -> Iterator[bytes]:
    """Yield a stream of exactly so many bytes, in large pieces.

    Raises:
        ValueError: It is too short for the opening and one write.
    """
    chance = random.Random(seed)
    head = opening()
    counter_bytes = len(write(COUNTER_OFFSET, _U64.pack(0)))
    smallest = len(write(0, b"x"))
    left = stream_bytes - len(head) - _END_BYTES
    if left < smallest:
        raise ValueError(f"a stream has at least {len(head) + _END_BYTES + smallest} bytes")
    yield head
    # Only made when it is needed: its CRCs take a moment.
    if left > WRITES_PER_BLOCK * WRITE_BYTES:
        block = b"".join(write(n * WRITE_BYTES, chance.randbytes(WRITE_BYTES)) for n in range(WRITES_PER_BLOCK))
        number = 0
        while left >= len(block) + counter_bytes + smallest:
            yield block
            yield write(COUNTER_OFFSET, _U64.pack(number))
            number += 1
            left -= len(block) + counter_bytes
    overhead = smallest - 1
    while left:
        size = left if left <= WRITE_BYTES else min(WRITE_BYTES, left - smallest)
        yield write(0, bytes(size - overhead))
        left -= size
    yield command(_END)


def main() -> None:
    """Write the stream to stdout."""
    parser = argparse.ArgumentParser(description="Write a valid btrfs send stream of a given length.")
    parser.add_argument("bytes", type=int)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--cut", action="store_true", help="leave END out and exit 1, like a send that fails at last")
    options = parser.parse_args()
    last = b""
    for piece in pieces(options.bytes, options.seed):
        _put(last)
        last = piece
    if options.cut:
        raise SystemExit(1)
    _put(last)


def _put(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    main()
