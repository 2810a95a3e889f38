"""Stop requests: handlers only record them, the loop that owns the run acts on them.

The first SIGTERM, SIGINT or SIGHUP asks for an orderly stop. Where the run waits inside a call that cannot look
(an S3 request of the supervisor), `interrupting` lets the handler raise instead. A second signal always raises.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from b2s.errors import Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """What the user's signals have asked of this run so far."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._raising = 0
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @classmethod
    def install(cls) -> StopRequest:
        """Take over the stop signals of this process (main thread only)."""
        request = cls()
        for number in STOP_SIGNALS:
            signal.signal(number, request._record)
        signal.siginterrupt(signal.SIGHUP, True)
        return request

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when a stop was asked for, for use in a wait."""
        return self._reader

    def check(self) -> None:
        """Raise `Stopped` when a stop was asked for."""
        if self.signal_number is not None:
            raise self._stopped()

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let the next stop signal raise `Stopped` inside the block, whatever it waits for."""
        self.check()
        self._raising += 1
        try:
            yield
        finally:
            self._raising -= 1

    def _record(self, number: int, _frame: FrameType | None) -> None:
        again = self.signal_number is not None
        if not again:
            self.signal_number = number
            os.write(self._writer, b"!")
        if again or self._raising:
            raise self._stopped()

    def _stopped(self) -> Stopped:
        number = self.signal_number or signal.SIGTERM
        return Stopped(f"stopped by {signal.Signals(number).name}", signal_number=int(number))
