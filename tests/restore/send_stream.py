"""Hand-made send streams: what nobody but an attacker would write.

Source: Linux fs/btrfs/send.h (6.18): command and attribute numbers, header layout, CRC-32C with initial value 0.
"""

from __future__ import annotations

import struct
from uuid import UUID

from scripts.bench.synthetic_stream import crc32c

SUBVOL, MKFILE, MKDIR, SYMLINK, WRITE, END = 1, 3, 4, 8, 15, 21
A_UUID, A_CTRANSID, A_INO, A_PATH, A_PATH_LINK, A_FILE_OFFSET, A_DATA = 1, 2, 3, 15, 17, 18, 19


def command(number: int, **attributes: bytes) -> bytes:
    """Return one command; attributes by number: ``command(MKFILE, a15=b"path")``."""
    payload = b"".join(struct.pack("<HH", int(name[1:]), len(value)) + value for name, value in attributes.items())
    crc = crc32c(struct.pack("<IHI", len(payload), number, 0) + payload)
    return struct.pack("<IHI", len(payload), number, crc) + payload


def stream(name: bytes, uuid: str, ctransid: int, *commands: bytes) -> bytes:
    """Return a whole version 1 stream that makes a subvolume and then does the commands."""
    opening = command(SUBVOL, a15=name, a1=UUID(uuid).bytes, a2=struct.pack("<Q", ctransid))
    return b"btrfs-stream\0" + struct.pack("<I", 1) + opening + b"".join(commands) + command(END)


def make_file(path: bytes, content: bytes) -> bytes:
    """Return the commands that make a file of this content."""
    return command(MKFILE, a15=path, a3=struct.pack("<Q", 300)) + write(path, content)


def write(path: bytes, content: bytes) -> bytes:
    """Return the command that writes to a file."""
    return command(WRITE, a15=path, a18=struct.pack("<Q", 0), a19=content)


def symlink(path: bytes, link: bytes) -> bytes:
    """Return the command that makes a symbolic link."""
    return command(SYMLINK, a15=path, a3=struct.pack("<Q", 301), a17=link)
