"""Just enough HTTP/1.1 to pass messages on without holding a body."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from io import BufferedReader

BLOCK = 256 << 10
Headers = list[tuple[str, str]]


class Broken(Exception):
    """A connection ended where a message had not, or shall end there: reset the other side too."""


def framed(reader: BufferedReader, headers: Headers, block_max: int, *, to_end: bool) -> Iterator[tuple[bytes, bool]]:
    """Yield (bytes, is it content) of a body framed by Content-Length, by chunks, or by the end of the connection."""
    lower = {name.lower(): value for name, value in headers}
    if "chunked" in lower.get("transfer-encoding", "").lower():
        while True:
            line = reader.readline(BLOCK)
            yield line, False
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            yield from ((block, True) for block in _exactly(reader, size, block_max))
            yield reader.readline(BLOCK), False
        while (line := reader.readline(BLOCK)) not in (b"\r\n", b"\n", b""):
            yield line, False
        yield b"\r\n", False
    elif to_end:
        while block := reader.read1(block_max):
            yield block, True
    else:
        yield from ((block, True) for block in _exactly(reader, int(lower.get("content-length", "0")), block_max))


def _exactly(reader: BufferedReader, size: int, block_max: int) -> Iterator[bytes]:
    while size:
        block = reader.read1(min(size, block_max))
        if not block:
            raise Broken  # the sender went away; the receiver must not take it for whole
        size -= len(block)
        yield block


def read_headers(reader: BufferedReader) -> Headers:
    """Read header lines up to the empty one."""
    headers = []
    while (line := reader.readline(BLOCK)) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name.strip(), value.strip()))
    return headers


def read_status(reader: BufferedReader) -> tuple[int, Headers]:
    """Read status and headers of the final response, past any 100 Continue."""
    while True:
        words = reader.readline(BLOCK).split()
        if len(words) < 2:
            raise Broken  # the server closed without an answer
        headers = read_headers(reader)
        if int(words[1]) >= 200:
            return int(words[1]), headers


def head(first: str, headers: Headers) -> bytes:
    """Return a request's or response's head as bytes."""
    lines = [first, *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def phrase(status: int) -> str:
    """Return the reason phrase of a status."""
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Injected"
