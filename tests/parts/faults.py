"""What the fault proxy can do to an S3 call, as data."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

from .s3_requests import S3Request


def error_body(code: str, message: str = "injected") -> bytes:
    """Return S3's error document."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{escape(code)}</Code>'
        f"<Message>{escape(message)}</Message><RequestId>INJECTED</RequestId></Error>"
    ).encode()


@dataclass(frozen=True, slots=True)
class Respond:
    """Answer this instead of the server; with `forward` the server does the call first and its answer is lost."""

    status: int = 503
    code: str | None = "SlowDown"  # S3 error code; the body unless `body` is given
    body: bytes | None = None  # b"" for an empty one; also white space or cut XML
    headers: Mapping[str, str] = field(default_factory=dict)  # may lie about Content-Length
    forward: bool = False

    def content(self) -> bytes:
        """Return the body to send."""
        if self.body is not None:
            return self.body
        return error_body(self.code) if self.code else b""


@dataclass(frozen=True, slots=True)
class DropReply:
    """Let the server do the call, then reset the connection instead of passing on its answer."""


@dataclass(frozen=True, slots=True)
class ResetUp:
    """Reset both connections after so many bytes of the request's body (0: before the server sees anything)."""

    after_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ResetDown:
    """Reset the client's connection after so many bytes of the response's body."""

    after_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FlipUp:
    """Flip one bit of the request's body on its way."""

    offset: int = 0
    bit: int = 0


@dataclass(frozen=True, slots=True)
class FlipDown:
    """Flip one bit of the response's body on its way."""

    offset: int = 0
    bit: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """Stand still until `release()`, at most `seconds`: before forwarding, or with `reply` before answering."""

    seconds: float = 60.0
    reply: bool = False
    released: threading.Event = field(default_factory=threading.Event)
    dropped: threading.Event = field(default_factory=threading.Event)

    def release(self, *, drop: bool = False) -> None:
        """Let every call that is held, and any later one, go on; or with `drop`, break off what was not forwarded.

        A client that was killed may have left all of its body in the kernel: only `drop` keeps that from the server.
        """
        if drop:
            self.dropped.set()
        self.released.set()


@dataclass(frozen=True, slots=True)
class Drip:
    """Pass on bodies, both ways, at this rate."""

    bytes_per_second: float = 1024.0


@dataclass(frozen=True, slots=True)
class RewriteHeaders:
    """Change headers of the response; None removes one (``{"x-amz-storage-class": "DEEP_ARCHIVE"}``).

    With `where_present`, only those that the server sent.
    """

    headers: Mapping[str, str | None]
    where_present: bool = False


Fault = Respond | DropReply | ResetUp | ResetDown | FlipUp | FlipDown | Hold | Drip | RewriteHeaders


@dataclass(slots=True)
class Rule:
    """When to do it: to the `nth` matching call and the following, `times` in all."""

    fault: Fault
    operation: str | None = None  # None matches every operation
    nth: int = 1  # counted from 1 among the calls that match
    times: int | None = 1  # None: always from the nth on
    key: str = ""  # the key must contain this
    part_number: int | None = None
    seen: int = 0  # calls that matched so far
    hits: int = 0  # calls it was done to so far

    def takes(self, request: S3Request) -> bool:
        """Count `request` and tell whether this rule applies to it; the proxy calls it under its lock."""
        if self.operation not in (None, request.operation) or self.key not in request.key:
            return False
        if self.part_number not in (None, request.part_number):
            return False
        self.seen += 1
        if self.seen < self.nth or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


class RandomFaults:
    """A seeded share of calls fails before or after it worked; the proxy asks under its lock."""

    def __init__(self, seed: int, share: float) -> None:
        self._rng = random.Random(seed)
        self._share = share

    def next(self) -> Fault | None:
        """Return what to do to the next call."""
        if self._rng.random() >= self._share:
            return None
        choices: list[Fault] = [
            Respond(500, "InternalError"),
            Respond(503, "SlowDown"),
            Respond(500, "InternalError", forward=True),
            DropReply(),
            ResetUp(self._rng.randrange(100_000)),
            ResetDown(self._rng.randrange(100)),
        ]
        return self._rng.choice(choices)
