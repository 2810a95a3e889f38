r"""The framing of a btrfs send stream, walked without touching the data.

A stream is `btrfs-stream\0` and a version, then commands: a header of 10 bytes (payload length, command, CRC) and
the payload. Only the headers are looked at; payloads are stepped over. That is enough to tell a whole stream from one
that was cut off, because a killed or failing `btrfs send` looks like a plain end of file to its reader.

Source: Linux fs/btrfs/send.h (6.6 and later), read 2026-11; streams of kernel 6.18 with `--proto` 1 and 2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = b"btrfs-stream\0"
VERSIONS = range(1, 4)  # 3 exists in kernels built with experimental features; the framing is the same
HEADER_BYTES = 17  # the magic and a little-endian u32 version
COMMAND_HEADER_BYTES = 10  # u32 payload length, u16 command, u32 CRC-32C of header (CRC as 0) and payload

COMMAND_SUBVOL = 1  # the first command of a full stream
COMMAND_SNAPSHOT = 2  # the first command of an incremental stream
COMMAND_END = 21
# The CRC of an END command depends on nothing: no payload, and the stream's version is not part of it.
END_HEADER = bytes.fromhex("000000001500506cc99d")

# The kernel's largest command is its send buffer: 64 KiB in version 1; 16 KiB + 128 KiB of encoded data, rounded up to
# a page, from version 2 on. 16 MiB leaves room for later kernels and still catches garbage at its first header.
COMMAND_BYTES_MAX = 16 * 1024 * 1024

_OPENING_BYTES = HEADER_BYTES + COMMAND_HEADER_BYTES
_VERSION = struct.Struct("<I")
_COMMAND = struct.Struct("<IH")


@dataclass(frozen=True, slots=True)
class StreamVerdict:
    """What the walk found out about a stream that is over."""

    whole: bool  # framing right from the magic to END, nothing after it
    detail: str  # what is wrong when it is not whole, else empty
    stream_bytes: int
    commands: int  # END included


class StreamFrames:
    """Walk the commands of one stream as its bytes come in.

    Feed it consecutive views, cut anywhere. A view is only read during `feed`: nothing of it is kept but up to 26
    bytes of a cut header. The cost is one unpacked header per command, whatever the size of the payload. The CRCs of
    the commands are not verified; `btrfs receive` does that.
    """

    __slots__ = ("_bytes", "_carry", "_commands", "_ended", "_fault", "_skip", "_trailing", "_want")

    def __init__(self) -> None:
        self._bytes = 0
        self._commands = 0
        self._skip = 0  # payload bytes of the current command still to come
        self._carry = b""  # the beginning of a header that the last view ended in
        self._want = _OPENING_BYTES  # bytes of the header that comes next; the opening includes the first command's
        self._ended = False
        self._trailing = 0  # bytes after END
        self._fault = ""  # the first thing that is wrong; nothing is parsed after it

    @property
    def ended(self) -> bool:
        """Return whether a right END command was seen."""
        return self._ended

    @property
    def fault(self) -> str:
        """Return what is already known to be wrong, else an empty string."""
        if self._fault or not self._trailing:
            return self._fault
        return f"{self._trailing} bytes follow the END command"

    def feed(self, view: memoryview) -> None:
        """Walk the next bytes of the stream.

        Args:
            view: The bytes that follow those of the last call, as a contiguous view of bytes.
        """
        size = len(view)
        self._bytes += size
        if self._ended:
            self._trailing += size
            return
        if self._fault:
            return
        position = self._skip
        if position >= size:
            self._skip = position - size
            return
        if self._want != COMMAND_HEADER_BYTES or self._carry:
            position = self._cross_cut(view, size)
        if position <= size:
            position = self._walk(view, position, size)
        self._skip = position - size

    def _walk(self, view: memoryview, position: int, size: int) -> int:
        """Step over the commands of one view; return where the next header begins, at or behind the view's end."""
        unpack = _COMMAND.unpack_from
        commands = 0
        last = size - COMMAND_HEADER_BYTES
        while position <= last:
            length, command = unpack(view, position)
            if command == COMMAND_END or length > COMMAND_BYTES_MAX:
                self._commands += commands
                self._halt(bytes(view[position : position + COMMAND_HEADER_BYTES]), size - position)
                return size
            position += COMMAND_HEADER_BYTES + length
            commands += 1
        self._commands += commands
        if position < size:
            self._carry = bytes(view[position:])
            return size
        return position

    def _cross_cut(self, view: memoryview, size: int) -> int:
        """Complete the header that earlier views began; return where the command after it begins."""
        needed = self._want - len(self._carry)
        header = self._carry + bytes(view[:needed])
        if size < needed:
            self._carry = header
            return size
        self._carry = b""
        if self._want == _OPENING_BYTES:
            self._want = COMMAND_HEADER_BYTES
            self._fault = _opening_fault(header)
            if self._fault:
                return size
            header = header[HEADER_BYTES:]
        length, command = _COMMAND.unpack(header[: _COMMAND.size])
        if command == COMMAND_END or length > COMMAND_BYTES_MAX:
            self._halt(header, size - needed + COMMAND_HEADER_BYTES)
            return size
        self._commands += 1
        return needed + int(length)

    def _halt(self, header: bytes, left_bytes: int) -> None:
        """Judge the header that ends the walk: END, or garbage."""
        offset = self._bytes - left_bytes
        length, command = _COMMAND.unpack(header[: _COMMAND.size])
        if command != COMMAND_END:
            self._fault = f"the command at byte {offset} claims {length} bytes, which no btrfs send writes"
        elif header != END_HEADER:
            self._fault = f"the END command at byte {offset} is damaged"
        else:
            self._commands += 1
            self._ended = True
            self._trailing = left_bytes - COMMAND_HEADER_BYTES

    def finish(self) -> StreamVerdict:
        """Judge the stream, now that no more bytes come."""
        detail = self.fault or ("" if self._ended else self._unfinished())
        return StreamVerdict(not detail, detail, self._bytes, self._commands)

    def _unfinished(self) -> str:
        if not self._bytes:
            return "the stream is empty"
        if self._want == _OPENING_BYTES:
            if self._carry[: len(MAGIC)] != MAGIC[: len(self._carry)]:
                return _NO_MAGIC
            return f"the stream ends after {self._bytes} bytes in its header"
        if self._skip or self._carry:
            return f"the stream ends after {self._bytes} bytes in the middle of a command"
        return f"the stream ends after {self._bytes} bytes without its END command"


_NO_MAGIC = "the stream does not start with btrfs-stream"


def _opening_fault(opening: bytes) -> str:
    """Return what is wrong with the stream's header and its first command, else an empty string."""
    if not opening.startswith(MAGIC):
        return _NO_MAGIC
    (version,) = _VERSION.unpack_from(opening, len(MAGIC))
    if version not in VERSIONS:
        return f"the stream says version {version}, which b2s does not know"
    _length, command = _COMMAND.unpack_from(opening, HEADER_BYTES)
    if command not in (COMMAND_SUBVOL, COMMAND_SNAPSHOT):
        return f"the stream's first command is {command}, not the one that creates a subvolume"
    return ""
