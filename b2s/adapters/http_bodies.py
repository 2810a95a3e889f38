"""Bodies of requests and replies, in the shapes that botocore and http.client expect, without a copy.

What comes in is counted as it comes, so that a peer which moves next to nothing is noticed; a reply that is no object
is bounded.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from b2s.core.limits import KIB, MIB
from b2s.errors import StoreRefused

REPLY_BYTES_MAX = 32 * MIB  # any reply but an object's body; a full list page has less than 3 MiB
REPLY_BUFFER_BYTES = 64 * KIB  # for heads and small bodies; larger reads go past it
BYTES_PER_SECOND_MIN = 4 * KIB  # a connection slower than this over the whole stall time is given up


class BodyView:
    """A request body for botocore: a file-like object over memory that is never copied whole."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self._position = 0

    def __len__(self) -> int:
        """Return the size of the body, in bytes."""
        return len(self.view)

    def read(self, amount: int | None = -1) -> bytes:
        """Read like a file; only botocore's own path (behind a proxy) does."""
        end = len(self.view) if amount is None or amount < 0 else self._position + amount
        piece = bytes(self.view[self._position : end])
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move like a file."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self.view)}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        """Return the position like a file."""
        return self._position


class Pace:
    """Notices a peer that keeps the connection alive but moves next to nothing."""

    def __init__(self, window_seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._window_seconds = window_seconds
        self._monotonic = monotonic
        self._bytes = 0
        self._since = monotonic()

    def moved(self, bytes_count: int, waited_seconds: float = 0.0) -> None:
        """Count bytes; raise TimeoutError when a whole window brought too few.

        Args:
            bytes_count: Bytes since the last call.
            waited_seconds: Time we held back ourselves since the last call; it does not count.
        """
        self._bytes += bytes_count
        self._since += waited_seconds
        elapsed = self._monotonic() - self._since
        if elapsed >= self._window_seconds:
            if self._bytes < BYTES_PER_SECOND_MIN * elapsed:
                raise TimeoutError(f"only {self._bytes} bytes in {elapsed:.0f} seconds")
            self._bytes = 0
            self._since += elapsed


class PacedReader(io.RawIOBase):
    """The reading end of the socket: what comes in is counted as it comes.

    TLS gives 16 KiB at a time, so a large read is filled here, in one loop; through the layers of `SocketIO` and
    `BufferedReader` every one of these pieces would cost as much as its decryption.
    """

    def __init__(self, sock: socket.socket, pace: Pace) -> None:
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open after http.client closed its end of it
        self._sock = sock
        self._pace = pace
        self._error: OSError | None = None  # met after some bytes of a read; the next one raises it

    def readable(self) -> bool:
        """Return True: `BufferedReader` asks."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Fill a large buffer, give a small one what there is; an error after some bytes comes with the next call."""
        view = memoryview(buffer)
        wanted = len(view) if len(view) > REPLY_BUFFER_BYTES else 1  # a small read takes what there is
        receive, filled = self._sock.recv_into, 0
        if self._error is not None:
            raise self._error
        try:
            while filled < wanted:
                count = receive(view[filled:])
                filled += count
                self._pace.moved(count)
                if not count:
                    break
        except OSError as error:
            if not filled:
                raise
            self._error = error
        return filled

    def close(self) -> None:
        """Let go of the socket."""
        self._raw.close()
        super().close()


class _PacedSocket:
    """What http.client needs of a socket to read one reply."""

    def __init__(self, sock: socket.socket, pace: Pace) -> None:
        self._sock = sock
        self._pace = pace

    def makefile(self, _mode: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(PacedReader(self._sock, self._pace), REPLY_BUFFER_BYTES))


class ReplyBody:
    """The body of a reply, in the shape botocore expects of urllib3."""

    def __init__(self, reply: http.client.HTTPResponse, close: Callable[[], None]) -> None:
        self._reply = reply
        self._close = close

    def readable(self) -> bool:
        """Return True: botocore's StreamingBody asks."""
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` straight from the socket as far as the reply goes."""
        try:
            return self._reply.readinto(buffer)
        except BaseException:
            self._close()
            raise

    def read(self, amount: int | None = None) -> bytes:
        """Read at most `amount` bytes; all, but bounded, without it."""
        try:
            piece = self._reply.read(REPLY_BYTES_MAX + 1 if amount is None else amount)
        except BaseException:
            self._close()
            raise
        if amount is None and len(piece) > REPLY_BYTES_MAX:
            self._close()
            raise StoreRefused(f"the store sent a reply of more than {REPLY_BYTES_MAX} bytes")
        if amount is None and self._reply.length:
            self._close()
            raise http.client.IncompleteRead(b"", self._reply.length)
        return piece

    def stream(self, *_args: Any) -> Iterator[bytes]:
        """Yield the whole bounded body: botocore reads what is not an object this way."""
        yield self.read()

    def close(self) -> None:
        """Be done with the body; when some of it is unread, the connection is dropped."""
        if not self._reply.isclosed():
            self._close()


def reply_class(pace: Pace) -> Callable[..., http.client.HTTPResponse]:
    """Return what http.client makes a reply with, so that its reading keeps that pace."""

    def reply(sock: socket.socket, **kwargs: Any) -> http.client.HTTPResponse:
        return http.client.HTTPResponse(cast(socket.socket, _PacedSocket(sock, pace)), **kwargs)

    return reply
