"""The one owner of retries: every S3 call goes through here, and nowhere else is one repeated.

botocore's own retries are off. They neither know which of our calls are safe to repeat, nor how long an outage
the user wants to ride out, nor that the run was asked to stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import tenacity
from tenacity import RetryCallState

from b2s.errors import B2sError, PartRejected

T = TypeVar("T")

WAIT_SECONDS_FIRST = 0.2
WAIT_SECONDS_MAX = 30.0
RETRY_AFTER_SECONDS_MAX = 120.0  # a server may ask for more; we look again sooner
STOP_POLL_SECONDS = 0.25

# Bytes that arrive wrong this often are not bad luck on the wire: something between us and the store, or the
# segment in the spool, is broken, and another half hour of sending it would only hide that.
REJECTIONS_MAX = 8

OnRetry = Callable[[B2sError, int, float], None]


def never_stop() -> None:
    """Do nothing: the run goes on."""


class Retrier:
    """Repeats a call while its errors are transient, with exponential back-off and full jitter.

    Attributes:
        retry_for_seconds: How long after the first failure of one call a new try may still begin.
        stop: Called between tries and several times a second while waiting; raises `Stopped` to end the run.
        on_retry: Told of every failure that is tried again: the error, 1 for the first retry, seconds to wait.
    """

    def __init__(
        self,
        retry_for_seconds: float,
        *,
        stop: Callable[[], None] = never_stop,
        on_retry: OnRetry | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.retry_for_seconds = retry_for_seconds
        self.stop = stop
        self.on_retry = on_retry
        self._monotonic = monotonic
        self._sleep = sleep

    def call(self, attempt: Callable[[], T], *, progress: Callable[[], int] | None = None) -> T:
        """Return what `attempt` returns, trying again while it raises transient errors.

        Args:
            attempt: One try. Must be safe to repeat.
            progress: A count that grows while tries get nearer to the goal (bytes already fetched). When it grew
                between two failures, the outage is another one and the time starts anew.

        Raises:
            B2sError: The first error that is not transient, or the last one when the time is over.
        """
        outage = _Outage(self.retry_for_seconds, self._monotonic, progress)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            stop=outage.is_over,
            wait=_wait_seconds,
            sleep=self._sleep_in_slices,
            before_sleep=self._tell,
            reraise=True,
        )
        self.stop()
        return retrying(attempt)

    def _tell(self, state: RetryCallState) -> None:
        error = _error_of(state)
        if self.on_retry is not None and error is not None:
            seconds = state.next_action.sleep if state.next_action is not None else 0.0
            self.on_retry(error, state.attempt_number, float(seconds))

    def _sleep_in_slices(self, seconds: float) -> None:
        ends_at = self._monotonic() + seconds
        self.stop()
        while (remaining := ends_at - self._monotonic()) > 0:
            self._sleep(min(remaining, STOP_POLL_SECONDS))
            self.stop()


class _Outage:
    """How long one call has been failing."""

    def __init__(
        self, retry_for_seconds: float, monotonic: Callable[[], float], progress: Callable[[], int] | None
    ) -> None:
        self._retry_for_seconds = retry_for_seconds
        self._monotonic = monotonic
        self._progress = progress
        self._began_at: float | None = None
        self._progress_seen = 0
        self._rejections = 0

    def is_over(self, state: RetryCallState) -> bool:
        """Tell tenacity to give up."""
        now = self._monotonic()
        progress = self._progress() if self._progress is not None else 0
        if self._began_at is None or progress > self._progress_seen:
            self._began_at = now
        self._progress_seen = max(progress, self._progress_seen)
        error = _error_of(state)
        if isinstance(error, PartRejected):
            self._rejections += 1
            if self._rejections >= REJECTIONS_MAX:
                return True
        return now - self._began_at >= self._retry_for_seconds


_JITTER = tenacity.wait_random_exponential(multiplier=WAIT_SECONDS_FIRST, max=WAIT_SECONDS_MAX)


def _wait_seconds(state: RetryCallState) -> float:
    error = _error_of(state)
    asked = error.context.get("retry_after_seconds", 0.0) if error is not None else 0.0
    return max(_JITTER(state), min(float(asked), RETRY_AFTER_SECONDS_MAX))


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, B2sError) and error.transient


def _error_of(state: RetryCallState) -> B2sError | None:
    error = state.outcome.exception() if state.outcome is not None else None
    return error if isinstance(error, B2sError) else None
