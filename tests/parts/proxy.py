"""A TCP/HTTP proxy in front of an S3 server that does to chosen calls what networks and stores do.

The Host header stays the client's, so signatures hold. Bodies are streamed, never held whole. One thread and one
fresh upstream connection per call; the client's connection is kept alive as HTTP says.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import BufferedReader
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from .faults import (
    Drip,
    DropReply,
    Fault,
    FlipDown,
    FlipUp,
    Hold,
    RandomFaults,
    ResetDown,
    ResetUp,
    Respond,
    RewriteHeaders,
    Rule,
)
from .http_wire import BLOCK, Broken, Headers, framed, head, phrase, read_headers, read_status
from .s3_requests import S3Request, parse_request

HISTORY_SECONDS = 2.0  # how long a client may take to read the end of a reply that was sent


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call as the proxy saw it."""

    request: S3Request
    headers: dict[str, str]  # of the request, names in lower case
    fault: Fault | None
    started: float  # time.monotonic()
    finished: float | None = None
    status: int | None = None  # what the client was told; None: nothing
    upstream_status: int | None = None  # what the server answered; None: it never did
    request_bytes: int = 0  # of the body, received from the client
    response_bytes: int = 0  # of the body, sent to the client

    @property
    def operation(self) -> str:
        """The S3 operation."""
        return self.request.operation

    @property
    def key(self) -> str:
        """The object's key."""
        return self.request.key

    @property
    def part_number(self) -> int | None:
        """The part number, for UploadPart."""
        return self.request.part_number


@dataclass(slots=True)
class _Call:
    """The state of one call while it passes through."""

    exchange: Exchange
    method: str
    client: socket.socket
    reader: BufferedReader
    upstream: socket.socket | None = None
    keep_alive: bool = True
    answered: bool = False  # all of its reply was sent, or is on its way
    seen: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})


class FaultProxy:
    """Listens on `endpoint_url` until `close()`; threads and rules may be used from any thread.

    Attributes:
        latency_seconds: Delay before each call is forwarded.
        bytes_per_second: Rate of each connection's bodies, both ways; None is unlimited.
        refusing: Reset every new connection at once, as if the server was down.
    """

    def __init__(self, upstream_url: str, *, tls: ssl.SSLContext | None = None) -> None:
        url = urlsplit(upstream_url)
        self._upstream = (url.hostname or "127.0.0.1", url.port or 80)
        self._tls = tls
        self.latency_seconds = 0.0
        self.bytes_per_second: float | None = None
        self.refusing = False
        self._lock = threading.Lock()
        self._written_down = threading.Condition(self._lock)
        self._rules: list[Rule] = []
        self._random: RandomFaults | None = None
        self._history: list[Exchange] = []
        self._open: dict[int, _Call] = {}
        self._sockets: set[socket.socket] = set()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        # Left to itself the kernel would come to hold a whole part of a call that is held here.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BLOCK)
        self.endpoint_url = f"{'https' if tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._acceptor = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        """Return the listening proxy."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def rule(
        self,
        operation: str | None,
        fault: Fault,
        *,
        nth: int = 1,
        times: int | None = 1,
        key: str = "",
        part_number: int | None = None,
    ) -> Rule:
        """Do `fault` to the `nth` call that matches and the ones after it, `times` in all (None: always).

        The first rule that applies wins; a call counts for every rule it matches up to that one.
        """
        rule = Rule(fault, operation, nth, times, key, part_number)
        with self._lock:
            self._rules.append(rule)
        return rule

    def fail_randomly(self, seed: int, share: float) -> None:
        """Let `share` (0..1) of all calls fail, before or after they worked; 0 stops it."""
        with self._lock:
            self._random = RandomFaults(seed, share) if share else None

    def clear(self, *, drop: bool = False) -> None:
        """Forget all rules and release what they hold, or break it off; the history stays."""
        with self._lock:
            rules, self._rules, self._random = self._rules, [], None
        for rule in rules:
            if isinstance(rule.fault, Hold):
                rule.fault.release(drop=drop)

    def history(self, operation: str | None = None, *, key: str = "") -> list[Exchange]:
        """Return the finished calls in the order they ended, of one operation and keys that contain `key` if given.

        A call whose reply a client has read is among them.
        """
        with self._lock:
            self._written_down.wait_for(lambda: not any(call.answered for call in self._open.values()), HISTORY_SECONDS)
            done = list(self._history)
        return [call for call in done if operation in (None, call.operation) and key in call.key]

    def in_flight(self, operation: str | None = None) -> list[Exchange]:
        """Return the calls that have begun and not ended."""
        with self._lock:
            running = [call.exchange for call in self._open.values()]
        return [call for call in running if operation in (None, call.operation)]

    def connections(self) -> int:
        """Return how many connections are open; none: everything that clients sent was dealt with, read or not."""
        with self._lock:
            return len(self._sockets)

    def received_part_bytes(self) -> int:
        """Return all bytes of part bodies that came from clients, failed and repeated ones too."""
        return sum(call.request_bytes for call in self.history("UploadPart"))

    def close(self) -> None:
        """Stop listening, cut every connection, wait for the threads. Safe to repeat."""
        self._closing.set()
        self.clear()
        with self._lock:
            sockets = list(self._sockets)
        for sock in (self._listener, *sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(5)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                _reset(client)
                continue
            thread = threading.Thread(target=self._serve, args=(client,), name="fault-proxy-client", daemon=True)
            self._threads = [*(thread for thread in self._threads if thread.is_alive()), thread]
            thread.start()

    @contextlib.contextmanager
    def _tracked(self, sock: socket.socket) -> Iterator[None]:
        with self._lock:
            self._sockets.add(sock)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(sock)
            sock.close()

    def _serve(self, client: socket.socket) -> None:
        if self._tls is not None:
            try:
                client = self._tls.wrap_socket(client, server_side=True)
            except OSError:
                client.close()
                return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._tracked(client), client.makefile("rb") as reader:
            try:
                while not self._closing.is_set() and self._one_call(client, reader):
                    pass
            except Broken:
                _reset(client)
            except (OSError, ValueError):
                pass  # the client went away, or spoke no HTTP

    def _one_call(self, client: socket.socket, reader: BufferedReader) -> bool:
        start = reader.readline(BLOCK).decode("latin-1").split()
        if len(start) != 3:
            return False
        method, target, _ = start
        headers = read_headers(reader)
        request = parse_request(method, target)
        call = _Call(self._begin(request, headers), method, client, reader)
        number = id(call)
        with self._lock:
            self._open[number] = call
        try:
            self._pass(call, target, headers)
            return call.keep_alive
        finally:
            done = replace(
                call.exchange,
                finished=time.monotonic(),
                request_bytes=call.seen["up"],
                response_bytes=call.seen["down"],
            )
            with self._lock:
                del self._open[number]
                self._history.append(done)
                self._written_down.notify_all()

    def _begin(self, request: S3Request, headers: Headers) -> Exchange:
        with self._lock:
            fault = next((rule.fault for rule in self._rules if rule.takes(request)), None)
            if fault is None and self._random is not None:
                fault = self._random.next()
        return Exchange(request, {name.lower(): value for name, value in headers}, fault, time.monotonic())

    def _pass(self, call: _Call, target: str, headers: Headers) -> None:
        fault = call.exchange.fault
        self._closing.wait(self.latency_seconds)
        if isinstance(fault, Hold) and not fault.reply:
            fault.released.wait(fault.seconds)
            if fault.dropped.is_set():
                raise Broken
        if call.exchange.headers.get("expect", "").lower() == "100-continue":
            call.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if isinstance(fault, ResetUp) and fault.after_bytes == 0:
            raise Broken
        if isinstance(fault, Respond) and not fault.forward:
            for _ in self._body(call, call.reader, headers, "up"):
                pass
            self._respond(call, fault)
            return
        upstream = socket.create_connection(self._upstream, timeout=120)
        with self._tracked(upstream):
            kept = [item for item in headers if item[0].lower() not in ("expect", "connection")]
            upstream.sendall(head(f"{call.method} {target} HTTP/1.1", [*kept, ("Connection", "close")]))
            self._send_body(call, upstream, headers)
            with upstream.makefile("rb") as answer:
                self._answer(call, answer)

    def _send_body(self, call: _Call, upstream: socket.socket, headers: Headers) -> None:
        broken = False
        for block in self._body(call, call.reader, headers, "up"):
            if broken:
                continue  # the server has answered early; take the rest so that the client reads that answer
            try:
                upstream.sendall(block)
            except OSError:
                broken = True

    def _answer(self, call: _Call, answer: BufferedReader) -> None:
        fault = call.exchange.fault
        status, headers = read_status(answer)
        call.exchange = replace(call.exchange, upstream_status=status)
        if isinstance(fault, Hold) and fault.reply:
            fault.released.wait(fault.seconds)
        if isinstance(fault, DropReply | Respond):
            while answer.read(BLOCK):
                pass
            if isinstance(fault, DropReply):
                raise Broken
            self._respond(call, fault)
            return
        if isinstance(fault, RewriteHeaders):
            sent = {name.lower() for name, _ in headers}
            changed = {
                name.lower(): value
                for name, value in fault.headers.items()
                if not fault.where_present or name.lower() in sent
            }
            headers = [item for item in headers if item[0].lower() not in changed]
            headers += [(name, value) for name, value in changed.items() if value is not None]
        names = {name.lower() for name, _ in headers}
        no_body = call.method == "HEAD" or status in (204, 304)
        framed = no_body or bool(names & {"content-length", "transfer-encoding"})
        call.keep_alive = framed
        shown = [item for item in headers if item[0].lower() != "connection"]
        if not framed:
            shown.append(("Connection", "close"))
        call.exchange = replace(call.exchange, status=status)
        length = (
            0 if no_body else next((int(value) for name, value in headers if name.lower() == "content-length"), None)
        )
        call.answered = length == 0
        call.client.sendall(head(f"HTTP/1.1 {status} {phrase(status)}", shown))
        if isinstance(fault, ResetDown) and fault.after_bytes == 0:
            raise Broken
        if not no_body:
            for block in self._body(call, answer, headers, "down", to_end=not framed):
                call.answered = call.seen["down"] == length
                call.client.sendall(block)

    def _respond(self, call: _Call, fault: Respond) -> None:
        body = b"" if call.method == "HEAD" else fault.content()
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/xml", **fault.headers}
        call.exchange = replace(call.exchange, status=fault.status)
        call.keep_alive = headers["Content-Length"] == str(len(body))
        call.seen["down"] += len(body)
        call.answered = True
        call.client.sendall(head(f"HTTP/1.1 {fault.status} {phrase(fault.status)}", list(headers.items())) + body)

    def _body(
        self, call: _Call, reader: BufferedReader, headers: Headers, way: str, *, to_end: bool = False
    ) -> Iterator[bytes]:
        """Yield a body as it comes, framing included, with the call's fault and rate applied; raises `Broken`."""
        fault = call.exchange.fault
        flip = (isinstance(fault, FlipUp) and way == "up") or (isinstance(fault, FlipDown) and way == "down")
        cut = (isinstance(fault, ResetUp) and way == "up") or (isinstance(fault, ResetDown) and way == "down")
        rate = fault.bytes_per_second if isinstance(fault, Drip) else self.bytes_per_second
        block_max = BLOCK if rate is None else max(1, min(BLOCK, int(rate / 20)))
        for block, is_data in framed(reader, headers, block_max, to_end=to_end):
            if not is_data:
                yield block
                continue
            position = call.seen[way]
            if flip and position <= fault.offset < position + len(block):  # type: ignore[union-attr]
                index = fault.offset - position  # type: ignore[union-attr]
                block = block[:index] + bytes([block[index] ^ (1 << fault.bit)]) + block[index + 1 :]  # type: ignore[union-attr]
            if cut and position + len(block) >= fault.after_bytes:  # type: ignore[union-attr]
                block = block[: fault.after_bytes - position]  # type: ignore[union-attr]
                call.seen[way] += len(block)
                yield block
                raise Broken
            call.seen[way] += len(block)
            if rate is not None:
                self._closing.wait(len(block) / rate)
            yield block


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
