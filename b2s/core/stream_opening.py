"""What the first command of a send stream says: which snapshot it makes, and on top of which one.

Source: Linux fs/btrfs/send.h and send.c (6.18), `struct btrfs_cmd_header`, `btrfs_tlv_header`; read 2026-11.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

from b2s.core.model import Kind
from b2s.core.stream import COMMAND_HEADER_BYTES, COMMAND_SNAPSHOT, COMMAND_SUBVOL, HEADER_BYTES, MAGIC
from b2s.errors import ChunkDamaged

OPENING_BYTES_MAX = 16 * 1024  # a path of 4 KiB and four small attributes, with room

_COMMAND = struct.Struct("<IHI")
_ATTRIBUTE = struct.Struct("<HH")
_UUID, _CTRANSID, _CLONE_UUID = 1, 2, 20
_KINDS = {COMMAND_SUBVOL: Kind.FULL, COMMAND_SNAPSHOT: Kind.INCREMENTAL}


@dataclass(frozen=True, slots=True)
class StreamOpening:
    """The snapshot that a stream makes.

    `uuid` is what `btrfs receive` writes down as `received_uuid`. It is the uuid of the sent snapshot, but where that
    snapshot was itself received (a backup of a replica), the kernel sends the uuid it was received with.
    """

    kind: Kind
    uuid: str
    ctransid: int
    parent_uuid: str | None  # None exactly for a full


def parse_opening(first_bytes: memoryview) -> StreamOpening:
    """Read the first command.

    Args:
        first_bytes: The beginning of the stream, at least its first `OPENING_BYTES_MAX` bytes or all of it.

    Raises:
        ChunkDamaged: This is not the beginning of a send stream.
    """
    view = bytes(first_bytes[:OPENING_BYTES_MAX])
    try:
        if not view.startswith(MAGIC):
            raise ValueError("no magic")
        length, command, _crc = _COMMAND.unpack_from(view, HEADER_BYTES)
        start = HEADER_BYTES + COMMAND_HEADER_BYTES
        if start + length > len(view):
            raise ValueError("cut off")
        found = _attributes(view[start : start + length])
        kind = _KINDS[command]
        (ctransid,) = struct.unpack("<Q", found[_CTRANSID])
        parent = str(UUID(bytes=found[_CLONE_UUID])) if kind is Kind.INCREMENTAL else None
        return StreamOpening(kind, str(UUID(bytes=found[_UUID])), ctransid, parent)
    except (ValueError, KeyError, struct.error) as error:
        raise ChunkDamaged(
            f"what is stored is not the beginning of a btrfs send stream: {error}", finding="stream_damaged"
        ) from error


def _attributes(payload: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position = 0
    while position < len(payload):
        kind, length = _ATTRIBUTE.unpack_from(payload, position)
        position += _ATTRIBUTE.size
        found[kind] = payload[position : position + length]
        if len(found[kind]) != length:
            raise ValueError("an attribute is cut off")
        position += length
    return found
