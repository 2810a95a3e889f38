"""The one owner of retries, with a clock of our own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from b2s.adapters.retry import REJECTIONS_MAX, RETRY_AFTER_SECONDS_MAX, WAIT_SECONDS_MAX, Retrier
from b2s.errors import AccessDenied, B2sError, PartRejected, Stopped, StoreUnavailable


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.naps.append(seconds)
        self.now += seconds


def failing(
    clock: Clock, error: Callable[[], BaseException], *, seconds: float = 0.0, times: int = 10**9
) -> Callable[[], str]:
    """Return a call that takes `seconds` and fails so many times."""
    left = times

    def attempt() -> str:
        nonlocal left
        clock.now += seconds
        left -= 1
        if left >= 0:
            raise error()
        return "done"

    return attempt


def retrier(clock: Clock, retry_for_seconds: float, **more: object) -> Retrier:
    """Return a retrier on that clock."""
    return Retrier(retry_for_seconds, monotonic=clock.monotonic, sleep=clock.sleep, **more)  # type: ignore[arg-type]


def test_gives_up_when_the_time_is_over() -> None:
    """A call fails for good once `retry_for` has passed since its first failure, and not before."""
    clock = Clock()
    told: list[tuple[B2sError, int, float]] = []
    with pytest.raises(StoreUnavailable):
        retrier(clock, 600, on_retry=lambda *each: told.append(each)).call(
            failing(clock, lambda: StoreUnavailable("x"))
        )
    assert 1600 <= clock.now <= 1600 + WAIT_SECONDS_MAX
    assert [number for _, number, _ in told] == list(range(1, len(told) + 1))
    assert all(0 <= seconds <= WAIT_SECONDS_MAX for _, _, seconds in told)
    assert sum(seconds for _, _, seconds in told) == pytest.approx(clock.now - 1000)


def test_time_before_the_first_failure_does_not_count() -> None:
    """A part that took an hour to fail is still tried again."""
    clock = Clock()
    call = failing(clock, lambda: StoreUnavailable("x"), seconds=3600, times=1)
    assert retrier(clock, 60).call(call) == "done"


def test_no_retry_at_all() -> None:
    """`retry_for: 0s` makes one try."""
    clock = Clock()
    with pytest.raises(StoreUnavailable):
        retrier(clock, 0).call(failing(clock, lambda: StoreUnavailable("x")))
    assert clock.naps == []


@pytest.mark.parametrize("error", [AccessDenied("x"), ValueError("a bug")])
def test_other_errors_pass_at_once(error: BaseException) -> None:
    """What trying again cannot change is raised as it is."""
    clock = Clock()
    with pytest.raises(type(error)):
        retrier(clock, 600).call(failing(clock, lambda: error))
    assert clock.naps == []


def test_rejected_bytes_are_sent_a_few_times_only() -> None:
    """Bytes that keep arriving wrong end before the time does."""
    clock = Clock()
    told: list[int] = []
    with pytest.raises(PartRejected):
        retrier(clock, 10**6, on_retry=lambda _e, number, _s: told.append(number)).call(
            failing(clock, lambda: PartRejected("x"))
        )
    assert len(told) == REJECTIONS_MAX - 1


@pytest.mark.parametrize(("asked", "waited"), [(45.0, 45.0), (10.0**6, RETRY_AFTER_SECONDS_MAX)])
def test_retry_after_is_honoured_within_bounds(asked: float, waited: float) -> None:
    """A server that names a time gets it, but not any time."""
    clock = Clock()
    call = failing(clock, lambda: StoreUnavailable("x", retry_after_seconds=asked), times=1)
    assert retrier(clock, 3600).call(call) == "done"
    assert clock.now - 1000 == pytest.approx(waited)


def test_progress_starts_the_time_anew() -> None:
    """A download that gets on between its failures goes on, however long it takes; one that does not ends."""
    clock = Clock()
    done = 0

    def attempt() -> str:
        nonlocal done
        clock.now += 50
        done += 1
        if done < 20:
            raise StoreUnavailable("broke off")
        return "done"

    assert retrier(clock, 60).call(attempt, progress=lambda: done) == "done"
    with pytest.raises(StoreUnavailable):
        retrier(clock, 60).call(failing(clock, lambda: StoreUnavailable("x"), seconds=50), progress=lambda: 7)


def test_stop_ends_a_wait_soon() -> None:
    """A run that is to stop does not sit out a long wait."""
    clock = Clock()

    def stop() -> None:
        if clock.now > 1010:
            raise Stopped("SIGTERM")

    with pytest.raises(Stopped):
        retrier(clock, 3600, stop=stop).call(failing(clock, lambda: StoreUnavailable("x", retry_after_seconds=100.0)))
    assert clock.now < 1011
