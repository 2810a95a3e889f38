"""TLS over a socket through memory: one read from the kernel serves many records.

A socket of Python's `ssl` reads every record of 16 KiB with two system calls, which is a fifth of what a download
costs. Here the kernel is asked for as much as it has, and OpenSSL decrypts it from memory. Sending gains nothing by it.
"""

from __future__ import annotations

import socket
import ssl

RECEIVE_BYTES = 256 * 1024


class TlsStream:
    """The client's end of one TLS connection, with as much of a socket's face as http.client needs.

    Owns the socket; not safe for several threads. Errors are those of `ssl` and of the socket, timeouts included.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, hostname: str) -> None:
        self._sock = sock
        self._received = memoryview(bytearray(RECEIVE_BYTES))
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._receive()
        self._flush()

    def sendall(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything."""
        with memoryview(data).cast("B") as view:
            sent = 0
            while sent < len(view):
                sent += self._tls.write(view[sent:])
                self._flush()

    def recv_into(self, buffer: memoryview) -> int:
        """Read what is there, at most as much as fits; 0 when the peer is done."""
        read, filled = self._tls.read, 0
        while True:
            try:
                while filled < len(buffer):
                    # With a buffer it counts; its stubs know only bytes.
                    count = int(read(len(buffer) - filled, buffer[filled:]))
                    if not count:
                        break
                    filled += count
                return filled
            except ssl.SSLWantReadError:
                if filled:
                    return filled
                self._receive()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return filled

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    @property
    def pending(self) -> bool:
        """Tell whether bytes were received that nobody has read."""
        return bool(self._incoming.pending or self._tls.pending())

    def settimeout(self, seconds: float | None) -> None:
        """Set how long each call to the kernel may take."""
        self._sock.settimeout(seconds)

    def setsockopt(self, level: int, name: int, value: int) -> None:
        """Set an option of the socket."""
        self._sock.setsockopt(level, name, value)

    def makefile(self, mode: str, buffering: int = 0) -> socket.SocketIO:
        """Return a reader that keeps the socket open until it is closed too; it is not to be read from."""
        return self._sock.makefile("rb", buffering=0)

    def close(self) -> None:
        """Close the socket as soon as no reader keeps it open."""
        self._sock.close()

    def _receive(self) -> None:
        self._flush()  # what the peer waits for before it sends anything
        count = self._sock.recv_into(self._received)
        if count:
            self._incoming.write(self._received[:count])
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._sock.sendall(self._outgoing.read())
