"""A lean HTTP path below botocore: it signs and parses, this sends and receives.

botocore's own path reads a body in 16 KiB pieces through several layers, which costs nearly as much as TLS. Its
event `before-send` hands us the signed request; what we return takes the place of its HTTP. One kept-alive
connection per process is enough, because every process does one thing at a time.

Redirects are never followed; bodies both ways are those of `http_bodies`.
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from b2s.adapters.bandwidth import Bandwidth
from b2s.adapters.http_bodies import BodyView, Pace, ReplyBody, reply_class
from b2s.adapters.retry import never_stop
from b2s.adapters.s3_errors import HINT_UNAVAILABLE, certificate_rejected, clean, is_certificate_error
from b2s.adapters.tls_stream import TlsStream
from b2s.core.limits import KIB
from b2s.errors import StoreRefused, StoreUnavailable

# Small enough that a slow line sends it within the read timeout, which Python counts for the whole slice. Where one
# takes next to no time, four at once cost less.
SLICE_BYTES = 256 * KIB
QUICK_SLICES = 4
QUICK_SECONDS = 0.1

OnBytes = Callable[[int], None]


class Transport:
    """Sends botocore's signed requests over one kept-alive connection.

    Register `before_send` for the event `before-send.s3`. Not safe for several threads.
    """

    def __init__(
        self,
        *,
        ca_bundle: str | None,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
        stall_timeout_seconds: float,
        on_bytes: OnBytes | None = None,
        bandwidth: Bandwidth | None = None,
        stop: Callable[[], None] = never_stop,
        downloads: bool = False,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            ca_bundle: File or directory of the authorities to trust; None: botocore's.
            connect_timeout_seconds: For a connection.
            read_timeout_seconds: For each call to the kernel, both ways.
            stall_timeout_seconds: Over which a connection must move as much as `Pace` asks for.
            on_bytes: Told of the bytes of parts as they are sent.
            bandwidth: A limit for what is sent.
            stop: Called while a limit holds sending back.
            downloads: Most bytes come in: worth a TLS that reads ahead.
        """
        self.on_bytes = on_bytes
        self._downloads = downloads
        self._ca_bundle = ca_bundle
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds
        self._stall_timeout_seconds = stall_timeout_seconds
        self._bandwidth = bandwidth
        self._stop = stop
        self._ssl_context: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._reply: http.client.HTTPResponse | None = None  # the last one on that connection
        self._origin: tuple[str, str, int] | None = None
        self._proxied: dict[str, bool] = {}

    def before_send(self, request: AWSPreparedRequest, **_kwargs: Any) -> AWSResponse | None:
        """Send one signed request and return its reply; None lets botocore send it (through a proxy).

        Raises:
            StoreUnavailable: The connection could not be made, broke, or moved too little.
            CertificateRejected: The server's certificate was not accepted.
        """
        url = urlsplit(request.url)
        origin = f"{url.scheme}://{url.netloc}"
        if origin not in self._proxied:
            self._proxied[origin] = bool(get_environ_proxies(origin).get(url.scheme))
        if self._proxied[origin]:
            return None
        where = f"{request.method} to {clean(origin, length_max=200)}"
        try:
            return self._exchange(request, url.path + (f"?{url.query}" if url.query else ""))
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise certificate_rejected(where, clean(error)) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if is_certificate_error(error):
                raise certificate_rejected(where, clean(error)) from error
            if isinstance(error, ssl.SSLError) and error.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"}:
                hint = "does the endpoint speak http instead of https?"
                raise StoreRefused(f"{where}: no TLS there ({clean(error)})", hint=hint) from error
            detail = f"{type(error).__name__}: {clean(error)}"
            raise StoreUnavailable(f"{where}: {detail}", hint=HINT_UNAVAILABLE) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        connection, self._connection = self._connection, None
        self._reply = None
        if connection is not None:
            connection.close()

    def _exchange(self, request: AWSPreparedRequest, target: str) -> AWSResponse:
        url = urlsplit(request.url)
        connection = self._connected(url.scheme, url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
        pace = Pace(self._stall_timeout_seconds)
        host_given = "Host" in request.headers
        connection.putrequest(request.method, target, skip_host=host_given, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name.lower() != "expect":  # saves a round trip; an early refusal is read all the same
                connection.putheader(name, value)
        body: Any = request.body
        if isinstance(body, str):
            body = body.encode()
        if body is not None and "Content-Length" not in request.headers:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        send_error = self._send_body(connection, body, pace)
        connection.response_class = reply_class(pace)  # type: ignore[assignment]
        try:
            reply = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise (send_error or error) from error
        if send_error is not None or reply.will_close:
            # The reply is still readable, but nothing may follow on this connection.
            self._connection = None
        self._reply = reply
        raw = ReplyBody(reply, self._closer(connection, reply))
        return AWSResponse(request.url, reply.status, cast(Any, reply.headers), raw)

    def _send_body(self, connection: http.client.HTTPConnection, body: Any, pace: Pace) -> OSError | None:
        """Send the body; return the error when the peer stopped listening, for it may have said why."""
        if body is None:
            return None
        view = body.view if isinstance(body, BodyView) else memoryview(body if isinstance(body, bytes) else body.read())
        sock = connection.sock
        slice_bytes = self._bandwidth.slice_bytes if self._bandwidth is not None else SLICE_BYTES
        counted = isinstance(body, BodyView)
        sent = 0
        try:
            while sent < len(view):
                piece = view[sent : sent + slice_bytes]
                waited = self._bandwidth.take(len(piece), self._stop) if self._bandwidth is not None else 0.0
                began = time.monotonic()
                sock.sendall(piece)
                if self._bandwidth is None:
                    quick = time.monotonic() - began < QUICK_SECONDS
                    slice_bytes = SLICE_BYTES * QUICK_SLICES if quick else SLICE_BYTES
                sent += len(piece)
                pace.moved(len(piece), waited)
                if counted and self.on_bytes is not None:
                    self.on_bytes(len(piece))
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            return error
        return None

    def _connected(self, scheme: str, host: str, port: int) -> http.client.HTTPConnection:
        origin = (scheme, host, port)
        unread = self._reply is not None and not self._reply.isclosed()
        if unread or self._origin != origin or (self._connection is not None and _is_dropped(self._connection)):
            self.close()
        if self._connection is None:
            connection: http.client.HTTPConnection
            if scheme == "https":
                kind = _ReadingAhead if self._downloads else http.client.HTTPSConnection
                connection = kind(host, port, timeout=self._connect_timeout_seconds, context=self._context())
            else:
                connection = http.client.HTTPConnection(host, port, timeout=self._connect_timeout_seconds)
            try:
                connection.connect()
                connection.sock.settimeout(self._read_timeout_seconds)
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            except BaseException:
                connection.close()
                raise
            self._connection, self._origin = connection, origin
        return self._connection

    def _context(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            path = str(get_cert_path(cast(Any, self._ca_bundle or True)))
            source = {"capath": path} if os.path.isdir(path) else {"cafile": path}
            try:
                context = ssl.create_default_context(**source)  # type: ignore[arg-type]
            except OSError as error:
                hint = "correct AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE or ca_bundle in ~/.aws/config"
                raise StoreRefused(f"the CA bundle {clean(path)} cannot be read: {clean(error)}", hint=hint) from error
            # Python 3.13 refuses many private authorities that botocore accepts.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            self._ssl_context = context
        return self._ssl_context

    def _closer(self, connection: http.client.HTTPConnection, reply: http.client.HTTPResponse) -> Callable[[], None]:
        def close() -> None:
            reply.close()
            connection.close()
            if self._connection is connection:
                self._connection = None

        return close


class _ReadingAhead(http.client.HTTPConnection):
    """An https connection over `TlsStream`."""

    default_port = http.client.HTTPS_PORT  # left out of the Host header, as it was signed

    def __init__(self, host: str, port: int, *, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout)
        self._context = context

    def connect(self) -> None:
        super().connect()
        try:
            self.sock = cast(socket.socket, TlsStream(self.sock, self._context, self.host))
        except BaseException:
            self.close()
            raise


def _is_dropped(connection: http.client.HTTPConnection) -> bool:
    """Tell whether a kept-alive connection is of no use: closed by the peer, or holding unread bytes."""
    if connection.sock is None or (isinstance(connection.sock, TlsStream) and connection.sock.pending):
        return True
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN | select.POLLPRI)
    return bool(poll.poll(0))
