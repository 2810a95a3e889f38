"""The sink's side of one connection: requests in, bodies kept or thrown away, replies out, at the least cost."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import ssl
import time
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

HEAD_BYTES_MAX = 64 * 1024
BUFFER_BYTES = 1 << 20
TLS_WRITE_BYTES = 256 * 1024
# Sixteen slices are the kernel's buffer: enough for the line, too little to hide a part in.
PACED_SLICE_BYTES = 256 * 1024
UPLINK_SLICE_BYTES = 16 * 1024
SLEEP_SECONDS_MIN = 0.002


@dataclass(frozen=True, slots=True)
class Request:
    """One request's head."""

    method: str
    bucket: str
    key: str  # decoded, empty for the bucket itself
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case

    @property
    def body_bytes(self) -> int:
        """Return how many bytes follow the head."""
        return int(self.headers.get("content-length", 0))

    @property
    def decoded_bytes(self) -> int:
        """Return the size of what is stored: less than the body where it is cut into signed chunks."""
        return int(self.headers.get("x-amz-decoded-content-length", self.body_bytes))

    @property
    def is_chunked(self) -> bool:
        """Tell whether the body is in aws-chunked encoding."""
        return "x-amz-decoded-content-length" in self.headers


class Uplink:
    """The client's own line: a rate that all connections share. Make it before the connections' processes."""

    def __init__(self, bytes_per_second: float = 0.0) -> None:
        self.bytes_per_second = bytes_per_second
        self._free_at = multiprocessing.Value("d", 0.0)

    def pace(self, count: int) -> None:
        """Take the time that so many bytes need behind those of the other connections."""
        with self._free_at.get_lock():
            now = time.monotonic()
            self._free_at.value = free_at = max(now, self._free_at.value) + count / self.bytes_per_second
        time.sleep(free_at - now)


class Line:
    """What lies between client and sink: a round trip before every reply, a rate per connection, and one for all."""

    def __init__(
        self, latency_seconds: float = 0.0, bytes_per_second: float = 0.0, uplink: Uplink | None = None
    ) -> None:
        self.latency_seconds = latency_seconds
        self._rate = bytes_per_second
        self._uplink = uplink if uplink is not None and uplink.bytes_per_second else None
        self._free_at = 0.0

    @property
    def slice_bytes(self) -> int:
        """Return how much may be received at once so that a paced line looks like one."""
        if self._uplink is not None:
            return UPLINK_SLICE_BYTES
        return PACED_SLICE_BYTES if self._rate else BUFFER_BYTES

    def round_trip(self) -> None:
        """Take the time of one round trip."""
        if self.latency_seconds:
            time.sleep(self.latency_seconds)

    def pace(self, count: int) -> None:
        """Take the time that so many bytes need."""
        if self._uplink is not None:
            self._uplink.pace(count)
        if not self._rate:
            return
        now = time.monotonic()
        self._free_at = max(now - SLEEP_SECONDS_MIN, self._free_at) + count / self._rate
        if self._free_at - now > SLEEP_SECONDS_MIN:
            time.sleep(self._free_at - now)


class Wire:
    """One connection, plain or TLS."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None, line: Line) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if line.slice_bytes < BUFFER_BYTES:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * line.slice_bytes)
        line.round_trip()  # SYN
        if context is not None:
            line.round_trip()  # TLS 1.3 takes one
            sock = context.wrap_socket(sock, server_side=True)
        self._sock = sock
        self._tls = sock._sslobj if isinstance(sock, ssl.SSLSocket) else None  # saves a microsecond per record
        self._line = line
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._early = b""  # of the body, read together with the head

    def next_request(self) -> Request | None:
        """Return the next request's head; None when the client is done."""
        data = self._early
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > HEAD_BYTES_MAX:
                raise ValueError("a head of more than 64 KiB")
            count = self._receive(BUFFER_BYTES)
            if count == 0:
                return None
            data += bytes(self._view[:count])
        self._early = data[end + 4 :]
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        method, target, _version = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        url = urlsplit(target)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        if headers.get("expect", "").lower() == "100-continue":
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return Request(method, bucket, key, dict(parse_qsl(url.query, keep_blank_values=True)), headers)

    def discard(self, count: int) -> None:
        """Throw away so many bytes of the body; plain TCP does not even copy them."""
        count -= len(self._take_early(count))
        flags = socket.MSG_TRUNC if self._tls is None else 0
        while count > 0:
            got = self._receive(min(count, self._line.slice_bytes), flags)
            if got == 0:
                raise ConnectionResetError("the client went away in mid-body")
            self._line.pace(got)
            count -= got

    def read(self, count: int) -> bytes:
        """Return so many bytes of the body."""
        data = bytearray(self._take_early(count))
        while len(data) < count:
            got = self._receive(min(count - len(data), self._line.slice_bytes))
            if got == 0:
                raise ConnectionResetError("the client went away in mid-body")
            self._line.pace(got)
            data += self._view[:got]
        return bytes(data)

    def read_line(self) -> bytes:
        """Return the body up to and without the next CRLF."""
        while (end := self._early.find(b"\r\n")) < 0:
            got = self._receive(self._line.slice_bytes)
            if got == 0:
                raise ConnectionResetError("the client went away in mid-body")
            self._early += bytes(self._view[:got])
        line, self._early = self._early[:end], self._early[end + 2 :]
        return line

    def save(self, count: int, descriptor: int) -> None:
        """Write so many bytes of the body to a file."""
        early = self._take_early(count)
        _write_all(descriptor, memoryview(early))
        count -= len(early)
        while count > 0:
            got = self._receive(min(count, self._line.slice_bytes))
            if got == 0:
                raise ConnectionResetError("the client went away in mid-body")
            self._line.pace(got)
            _write_all(descriptor, self._view[:got])
            count -= got

    def reply(self, status: str, headers: dict[str, str], body: bytes = b"", *, length: int | None = None) -> None:
        """Send a reply; with `length`, only its head, for a body that follows or belongs to a HEAD."""
        self._line.round_trip()
        fields = {"Server": "b2s-bench-sink", **headers, "Content-Length": str(len(body) if length is None else length)}
        head = f"HTTP/1.1 {status}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
        self._send(head.encode("latin-1") + body)

    def send_file(self, descriptor: int, offset: int, count: int) -> None:
        """Send a piece of a file as (part of) a reply's body."""
        end = offset + count
        while offset < end:
            room = min(end - offset, self._line.slice_bytes)
            if self._tls is None:
                sent = os.sendfile(self._sock.fileno(), descriptor, offset, room)
            else:
                sent = os.preadv(descriptor, [self._view[: min(room, TLS_WRITE_BYTES)]], offset)
                self._send(self._view[:sent])
            if sent == 0:
                raise EOFError("a stored file is shorter than it was")
            self._line.pace(sent)
            offset += sent

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._sock.close()

    def _take_early(self, count: int) -> bytes:
        taken, self._early = self._early[:count], self._early[count:]
        return taken

    def _receive(self, count: int, flags: int = 0) -> int:
        if self._tls is None:
            return self._sock.recv_into(self._view, count, flags)
        try:
            return self._tls.read(count, self._view)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0

    def _send(self, data: bytes | memoryview) -> None:
        self._sock.sendall(data)


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]
