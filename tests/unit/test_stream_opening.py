"""The first command of a stream."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from b2s.core.model import Kind
from b2s.core.stream_opening import StreamOpening, parse_opening
from b2s.errors import ChunkDamaged
from tests.restore.send_stream import command, stream

UUID_TEXT = "3e87cba0-bbdc-2945-8f6f-154934fac652"


def test_full_and_incremental_are_told_apart() -> None:
    """SUBVOL begins a full, SNAPSHOT an incremental with its send parent."""
    full = stream(b"name", UUID_TEXT, 7)
    assert parse_opening(memoryview(full)) == StreamOpening(Kind.FULL, UUID_TEXT, 7, None)
    uuid, number = UUID(UUID_TEXT).bytes, struct.pack("<Q", 9)
    snapshot = command(2, a15=b"name", a1=uuid, a2=number, a20=uuid, a21=number)
    incremental = b"btrfs-stream\0" + struct.pack("<I", 2) + snapshot
    assert parse_opening(memoryview(incremental)) == StreamOpening(Kind.INCREMENTAL, UUID_TEXT, 9, UUID_TEXT)


def test_every_cut_is_refused() -> None:
    """A stream cut anywhere in its first command is no beginning."""
    whole = stream(b"name", UUID_TEXT, 7)[:-10]
    for length in range(len(whole)):
        with pytest.raises(ChunkDamaged):
            parse_opening(memoryview(whole[:length]))


@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage: bytes) -> None:
    """Nothing but our error comes out, whatever goes in."""
    for content in (garbage, b"btrfs-stream\0\1\0\0\0" + garbage):
        with pytest.raises(ChunkDamaged):
            parse_opening(memoryview(content))
