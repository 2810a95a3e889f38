"""The kernel's btrfs questions: ioctl numbers, structures, and nothing else.

Reading through ioctls instead of the tool's text keeps names with newlines or without an encoding intact and
needs no process. Everything that *changes* a filesystem goes through the tool, because a process can be left
behind when the filesystem is frozen and our own cannot.

Source: Linux 6.18, include/uapi/linux/btrfs.h and btrfs_tree.h (read 2026-11); x86-64 and arm64 agree, the
structures are packed or naturally aligned little-endian.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

SUBVOLUME_ROOT_INODE = 256  # BTRFS_FIRST_FREE_OBJECTID: the inode of every subvolume's top directory
FS_TREE_ID = 5  # the top-level subvolume

_GET_SUBVOL_INFO = 0x81F8943C
_FS_INFO = 0x8400941F
_TREE_SEARCH = 0xD0009411
_INO_LOOKUP = 0xD0009412

_ROOT_TREE_ID = 1
_UUID_TREE_ID = 9
_ROOT_BACKREF_KEY = 144
_ROOT_REF_KEY = 156
_UUID_KEY_SUBVOLUME = 251
_UUID_KEY_RECEIVED = 252
_FLAG_READ_ONLY = 1
_U64_MAX = 2**64 - 1

_SUBVOL_INFO = struct.Struct("<Q256sQQQQ16s16s16sQQQQ" + "QI4x" * 4)
_SUBVOL_INFO_BYTES = 504
_FS_INFO_BYTES = 1024
_SEARCH_KEY = struct.Struct("<7Q4I4Q")
_SEARCH_ITEM = struct.Struct("<QQQII")
_ROOT_REF = struct.Struct("<QQH")
_PAGE_BYTES = 4096
_NIL = UUID(int=0)


@dataclass(frozen=True, slots=True)
class RawSubvolume:
    """One answer of BTRFS_IOC_GET_SUBVOL_INFO, as far as b2s uses it."""

    tree_id: int
    read_only: bool
    uuid: UUID
    parent_uuid: UUID | None
    received_uuid: UUID | None
    ctransid: int
    otransid: int
    created_nanoseconds: int  # since the epoch
    stransid: int  # 0 when it was not received
    rtransid: int  # 0 when it was not received


@dataclass(frozen=True, slots=True)
class RootReference:
    """Where a subvolume hangs: its entry in a directory of another subvolume."""

    tree_id: int  # the subvolume that hangs there
    parent_tree_id: int
    directory_inode: int  # within the parent
    name: bytes


@contextmanager
def opened_directory(path: str) -> Iterator[int]:
    """Open a directory for ioctls and close it again."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def subvolume_info(fd: int) -> RawSubvolume:
    """Ask for the subvolume that the open directory lies in."""
    answer = bytearray(_SUBVOL_INFO_BYTES)
    fcntl.ioctl(fd, _GET_SUBVOL_INFO, answer)
    fields = _SUBVOL_INFO.unpack_from(answer)
    tree_id, _name, _parent_id, _dirid, _generation, flags, uuid, parent_uuid, received_uuid, ctransid, otransid = (
        fields[:11]
    )
    stransid, rtransid = fields[11:13]
    created_seconds, created_nanoseconds = fields[15:17]
    return RawSubvolume(
        tree_id=tree_id,
        read_only=bool(flags & _FLAG_READ_ONLY),
        uuid=UUID(bytes=uuid),
        parent_uuid=_uuid_or_none(parent_uuid),
        received_uuid=_uuid_or_none(received_uuid),
        ctransid=ctransid,
        otransid=otransid,
        created_nanoseconds=created_seconds * 1_000_000_000 + created_nanoseconds,
        stransid=stransid,
        rtransid=rtransid,
    )


def filesystem_uuid(fd: int) -> UUID:
    """Ask for the UUID of the filesystem that the open directory lies in."""
    answer = bytearray(_FS_INFO_BYTES)
    fcntl.ioctl(fd, _FS_INFO, answer)
    return UUID(bytes=bytes(answer[16:32]))


def children_of(fd: int, tree_id: int) -> list[RootReference]:
    """Ask which subvolumes hang directly in this one. Needs CAP_SYS_ADMIN."""
    return [
        _root_reference(child, tree_id, data)
        for child, data in _search(fd, _ROOT_TREE_ID, tree_id, _ROOT_REF_KEY, 0, _U64_MAX)
    ]


def parent_of(fd: int, tree_id: int) -> RootReference | None:
    """Ask where a subvolume hangs; None for the top level and for one being deleted. Needs CAP_SYS_ADMIN."""
    for parent, data in _search(fd, _ROOT_TREE_ID, tree_id, _ROOT_BACKREF_KEY, 0, _U64_MAX):
        return _root_reference(tree_id, parent, data)
    return None


def directory_path(fd: int, tree_id: int, inode: int) -> bytes:
    """Ask for the path of a directory inside its subvolume: empty or ending in a slash. Needs CAP_SYS_ADMIN."""
    if inode == SUBVOLUME_ROOT_INODE:
        return b""
    answer = bytearray(_PAGE_BYTES)
    struct.pack_into("<QQ", answer, 0, tree_id, inode)
    fcntl.ioctl(fd, _INO_LOOKUP, answer)
    return bytes(answer[16:]).split(b"\0", 1)[0]


def trees_with_uuid(fd: int, uuid: UUID) -> list[int]:
    """Ask which subvolumes have this UUID, then which were received with it. Needs CAP_SYS_ADMIN."""
    objectid, offset = struct.unpack("<QQ", uuid.bytes)
    found: list[int] = []
    for key_type in (_UUID_KEY_SUBVOLUME, _UUID_KEY_RECEIVED):
        for _, data in _search(fd, _UUID_TREE_ID, objectid, key_type, offset, offset):
            found.extend(struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8]))
    return list(dict.fromkeys(found))


def _search(
    fd: int, tree_id: int, objectid: int, key_type: int, min_offset: int, max_offset: int
) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, data) of every item of one object and type, page after page."""
    while min_offset <= max_offset:
        page = bytearray(_PAGE_BYTES)
        _SEARCH_KEY.pack_into(
            page,
            0,
            tree_id,
            objectid,
            objectid,
            min_offset,
            max_offset,
            0,
            _U64_MAX,
            key_type,
            key_type,
            4096,
            0,
            *[0] * 4,
        )
        fcntl.ioctl(fd, _TREE_SEARCH, page)
        count = _SEARCH_KEY.unpack_from(page)[9]
        position = _SEARCH_KEY.size
        for _ in range(count):
            _transid, _objectid, offset, _type, length = _SEARCH_ITEM.unpack_from(page, position)
            position += _SEARCH_ITEM.size
            yield offset, bytes(page[position : position + length])
            position += length
            min_offset = offset + 1
        if count == 0:
            return


def _root_reference(tree_id: int, parent_tree_id: int, data: bytes) -> RootReference:
    directory_inode, _sequence, name_bytes = _ROOT_REF.unpack_from(data)
    name = data[_ROOT_REF.size : _ROOT_REF.size + name_bytes]
    return RootReference(tree_id, parent_tree_id, directory_inode, name)


def _uuid_or_none(raw: bytes) -> UUID | None:
    uuid = UUID(bytes=raw)
    return None if uuid == _NIL else uuid
