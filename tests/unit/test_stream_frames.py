"""The walker of send streams, on hand-made streams."""

from __future__ import annotations

import struct

import pytest

from b2s.core.stream import COMMAND_BYTES_MAX, END_HEADER, StreamFrames, StreamVerdict

OPENING = b"btrfs-stream\0" + struct.pack("<I", 1)


def command(number: int, payload: bytes) -> bytes:
    """Return one command; its CRC is not looked at."""
    return struct.pack("<IHI", len(payload), number, 0xDEAD) + payload


WHOLE = OPENING + command(1, b"subvolume") + command(15, b"x" * 100) + command(20, b"") + END_HEADER


def walk(*pieces: bytes) -> StreamVerdict:
    """Feed the pieces and return the verdict."""
    frames = StreamFrames()
    for piece in pieces:
        frames.feed(memoryview(piece))
    return frames.finish()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_whole_stream(version: int) -> None:
    """A stream from magic to END is whole in every protocol version."""
    stream = WHOLE[:13] + struct.pack("<I", version) + WHOLE[17:]
    assert walk(stream) == StreamVerdict(True, "", len(stream), 4)


def test_end_crc_is_the_right_one() -> None:
    """The END command's constant is the kernel's CRC-32C (seed 0, not inverted) of its own header."""
    crc = 0
    for byte in END_HEADER[:6] + bytes(4):
        crc ^= byte
        for _bit in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    assert END_HEADER[6:] == struct.pack("<I", crc)


@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
def test_every_cut_of_the_same_stream_reads_the_same(cut: int) -> None:
    """Two views cut anywhere, also inside a header, give what one view gives."""
    assert walk(WHOLE[:cut], b"", WHOLE[cut:]) == walk(WHOLE)


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_no_truncated_stream_is_whole(length: int) -> None:
    """A stream that lacks its last bytes is never whole, and the detail says where it ends."""
    verdict = walk(WHOLE[:length])
    assert not verdict.whole
    assert verdict.detail == "the stream is empty" if length == 0 else f"ends after {length} bytes" in verdict.detail


def test_ends_between_commands() -> None:
    """A stream cut between two commands only lacks END."""
    length = len(WHOLE) - len(END_HEADER)
    assert walk(WHOLE[:length]).detail == f"the stream ends after {length} bytes without its END command"


@pytest.mark.parametrize("tail", [b"x", b"x" * 100_000])
def test_bytes_after_end(tail: bytes) -> None:
    """Whatever follows END, in the same view or a later one, makes the stream not whole."""
    expected = f"{len(tail)} bytes follow the END command"
    assert walk(WHOLE + tail).detail == walk(WHOLE, tail).detail == expected


@pytest.mark.parametrize(
    ("stream", "detail"),
    [
        (b"not a stream", "does not start with btrfs-stream"),
        (b"not a stream" * 10, "does not start with btrfs-stream"),
        (b"btrfs-streaM\0" + WHOLE[13:], "does not start with btrfs-stream"),
        (b"btrfs-stream\0" + struct.pack("<I", 9) + WHOLE[17:], "says version 9"),
        (OPENING + END_HEADER, "first command is 21"),
        (OPENING + command(15, b"x") + END_HEADER, "first command is 15"),
        (OPENING + command(1, b"x") + END_HEADER[:6] + b"\0\0\0\0", "END command at byte 28 is damaged"),
        (OPENING + command(1, b"x") + b"\1" + END_HEADER[1:] + b"x", "END command at byte 28 is damaged"),
        (OPENING + command(1, b"x") + struct.pack("<IHI", COMMAND_BYTES_MAX + 1, 15, 0), "command at byte 28 claims"),
        (OPENING + struct.pack("<IHI", 2**32 - 1, 1, 0), "command at byte 17 claims"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_wrong_streams(stream: bytes, detail: str, step: int) -> None:
    """Each kind of garbage is named, however it was cut, and every byte is counted."""
    verdict = walk(*(stream[start : start + step] for start in range(0, len(stream), step)))
    assert not verdict.whole
    assert detail in verdict.detail
    assert verdict.stream_bytes == len(stream)


def test_ended_is_known_at_once() -> None:
    """The chunker learns of END from the view that contains its last byte."""
    frames = StreamFrames()
    frames.feed(memoryview(WHOLE[:-1]))
    assert not frames.ended
    frames.feed(memoryview(WHOLE[-1:]))
    assert frames.ended
    assert frames.fault == ""
