"""The pool finishes its tasks whatever happens to its processes."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from b2s.core.appetite import Appetite
from b2s.errors import AccessDenied, WorkerFailed
from b2s.processes.pool import FAILED_STARTS_MAX, WorkerLost, WorkerPool, wait_any
from tests.processes import pool_workers

DEADLINE_SECONDS = 60.0


class Watched:
    """A pool and what it told."""

    def __init__(self, main: Callable[..., None], size: int, stall_seconds: float) -> None:
        self.started: list[int] = []
        self.lost: list[WorkerLost] = []
        self.pool = WorkerPool(
            multiprocessing.get_context("forkserver"),
            main,
            (),
            size,
            stall_seconds,
            on_started=self.started.append,
            on_lost=self.lost.append,
            on_retry=lambda retry: None,
        )
        self.pool.start()

    def collect(self, count: int, each: Callable[[], None] = lambda: None) -> list[Any]:
        """Return `count` reports, within a deadline."""
        reports: list[Any] = []
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(reports) < count:
            assert time.monotonic() < deadline, "the pool hangs"
            wait_any(self.pool.wait_handles(), 0.2)
            reports += self.pool.collect()
            each()
        return reports


@pytest.fixture
def pool_of() -> Iterator[Callable[..., Watched]]:
    """Make pools that are stopped at the end."""
    made: list[Watched] = []

    def make(main: Callable[..., None] = pool_workers.echo, size: int = 3, stall_seconds: float = 60.0) -> Watched:
        made.append(Watched(main, size, stall_seconds))
        return made[-1]

    yield make
    for watched in made:
        watched.pool.stop()
        assert not any(os.path.exists(f"/proc/{pid}") for pid in watched.started)


def test_every_task_is_answered_once(pool_of: Callable[..., Watched]) -> None:
    """More tasks than workers: each is done exactly once."""
    watched = pool_of()
    for number in range(50):
        watched.pool.submit(number)
    assert sorted(watched.collect(50)) == list(range(50))
    assert not watched.pool.busy


def test_idle_workers_killed_in_turn(pool_of: Callable[..., Watched]) -> None:
    """Killing an idle worker, each in turn, never hangs the others (K04)."""
    watched = pool_of()
    watched.pool.submit("warm")
    watched.collect(1)
    for pid in list(watched.started):
        os.kill(pid, signal.SIGKILL)
        watched.pool.submit(pid)
        assert watched.collect(1) == [pid]
    for number in range(9):
        watched.pool.submit(number)
    assert len(watched.collect(9)) == 9


def test_task_of_a_dead_worker_is_done_by_another(pool_of: Callable[..., Watched], tmp_path: Path) -> None:
    """A worker killed in mid-task loses nothing."""
    watched = pool_of()
    watched.pool.submit(("die-once", str(tmp_path / "died")))
    assert watched.collect(1) == [("die-once", str(tmp_path / "died"))]
    assert [lost.task_lost for lost in watched.lost] == [True]


def test_answer_before_death_counts_once(pool_of: Callable[..., Watched], tmp_path: Path) -> None:
    """A worker killed right after its report is not asked again (K05)."""
    watched = pool_of()
    task = ("answer-and-die", str(tmp_path / "died"))
    watched.pool.submit(task)
    assert watched.collect(1) == [task]
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not watched.lost and time.monotonic() < deadline:
        wait_any(watched.pool.wait_handles(), 0.2)
        assert watched.pool.collect() == []
    assert [lost.task_lost for lost in watched.lost] == [False]


def test_a_hundred_random_kills(pool_of: Callable[..., Watched]) -> None:
    """A hundred kills at random moments: all tasks are answered, each once."""
    watched = pool_of(size=4)
    chance = random.Random(7)
    for number in range(400):
        watched.pool.submit(number)
    kills = 0

    def kill_one() -> None:
        nonlocal kills
        if kills < 100:
            with contextlib.suppress(ProcessLookupError):  # it was killed before and not noticed yet
                os.kill(chance.choice(watched.started[-4:]), signal.SIGKILL)
                kills += 1

    reports = watched.collect(400, kill_one)
    assert sorted(reports) == list(range(400))


def test_frozen_worker_is_replaced(pool_of: Callable[..., Watched]) -> None:
    """A worker that shows no sign of life is ended, and its task is done by its replacement, which freezes too."""
    watched = pool_of(size=1, stall_seconds=0.3)
    watched.pool.submit("freeze")
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(watched.lost) < 2 and time.monotonic() < deadline:
        wait_any(watched.pool.wait_handles(), 0.1)
        watched.pool.collect()
    assert all(lost.stalled and lost.task_lost for lost in watched.lost)
    assert len(watched.lost) >= 2


def test_deadly_task_ends_the_run(pool_of: Callable[..., Watched]) -> None:
    """A task that kills every worker is given up in the end instead of going round for ever."""
    watched = pool_of(size=1)
    watched.pool.submit("always-die")
    with pytest.raises(WorkerFailed, match="same task"):
        watched.collect(1)


def test_task_that_ends_every_worker_is_given_up_soon(pool_of: Callable[..., Watched]) -> None:
    """A worker that ends by itself in mid-task was not killed by anybody: five tries are enough."""
    watched = pool_of(size=1)
    watched.pool.submit("exit")
    with pytest.raises(WorkerFailed, match="same task"):
        watched.collect(1)
    assert len(watched.lost) == 5


def test_stillborn_workers_end_the_run(pool_of: Callable[..., Watched]) -> None:
    """Workers that die before they are ready stop the run instead of a crash loop."""
    watched = pool_of(pool_workers.stillborn)
    with pytest.raises(WorkerFailed, match="before they do any work"):
        watched.collect(1)


def test_worker_that_never_gets_ready_is_replaced_and_at_last_given_up(pool_of: Callable[..., Watched]) -> None:
    """K10: one that stands still in its start has no task yet, but tasks wait for it."""
    watched = pool_of(pool_workers.never_ready, size=1)
    watched.pool.submit("a task")
    looks = itertools.count(1)
    watched.pool.monotonic = lambda: time.monotonic() + 3600.0 * next(looks)
    try:
        with pytest.raises(WorkerFailed, match="do not get ready"):
            watched.collect(1)
    finally:
        watched.pool.monotonic = time.monotonic
    assert [(lost.stalled, lost.task_lost) for lost in watched.lost] == [(True, False)] * FAILED_STARTS_MAX


def test_failure_of_a_task_arrives_as_its_error(pool_of: Callable[..., Watched]) -> None:
    """A worker's error is raised in the supervisor with its class and words."""
    watched = pool_of()
    watched.pool.submit("deny")
    with pytest.raises(AccessDenied, match="no s3:PutObject on x"):
        watched.collect(1)


def test_reports_beside_a_failure_are_not_lost(pool_of: Callable[..., Watched]) -> None:
    """What the others did at the moment one of them failed is told by the next call."""
    watched = pool_of(size=4)
    for number in range(4):  # a worker for each is there afterwards
        watched.pool.submit(number)
    watched.collect(4)
    for task in ("a", "deny", "b", "deny"):
        watched.pool.submit(task)
    reports: list[Any] = []
    failures = 0
    deadline = time.monotonic() + DEADLINE_SECONDS
    while watched.pool.busy:
        assert time.monotonic() < deadline, "a failed task keeps the pool busy"
        wait_any(watched.pool.wait_handles(), 0.2)
        try:
            reports += watched.pool.collect()
        except AccessDenied:
            failures += 1
    reports += watched.pool.collect()
    assert (sorted(reports), failures) == (["a", "b"], 2)


def test_dismissed_workers_end_by_themselves(pool_of: Callable[..., Watched]) -> None:
    """They are waited for by `stop`, and nobody takes their end for a loss."""
    watched = pool_of()
    for number in range(3):
        watched.pool.submit(number)
    watched.collect(3)
    watched.pool.dismiss()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while any(worker.process.is_alive() for worker in watched.pool._workers):
        assert time.monotonic() < deadline, "a worker does not end"
        time.sleep(0.01)
    assert {worker.process.exitcode for worker in watched.pool._workers} == {0}
    watched.pool.stop(2.0)
    assert watched.lost == []


def test_nobody_is_replaced_at_the_end(pool_of: Callable[..., Watched]) -> None:
    """Once nothing new is to begin, a dead worker's task is dropped with it."""
    watched = pool_of(size=1)
    watched.pool.submit("freeze")
    wait_any(watched.pool.wait_handles(), DEADLINE_SECONDS)
    watched.pool.collect()
    watched.pool.begin_nothing_new()
    os.kill(watched.started[-1], signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while watched.pool.busy:
        assert time.monotonic() < deadline
        wait_any(watched.pool.wait_handles(), 0.2)
        assert watched.pool.collect() == []
    assert len(watched.started) == 1


def test_grows_while_tasks_wait_for_workers_that_do_not_run(pool_of: Callable[..., Watched]) -> None:
    """The first two of four wait for a line; as long as nothing waits for them there are no others."""
    appetite = Appetite(4)
    watched = pool_of(size=appetite.workers)
    pool = watched.pool
    deadline = time.monotonic() + DEADLINE_SECONDS
    for number in range(2):
        pool.submit("freeze")
        while sum(worker.task is not None for worker in pool._workers) <= number:
            assert time.monotonic() < deadline, "nobody takes the task"
            pool.collect()
            wait_any(pool.wait_handles(), 0.1)
    assert not pool.overloaded
    pool.submit(1)
    assert pool.overloaded
    while not pool.collect():
        assert time.monotonic() < deadline, "the pool does not grow"
        pool.grow(appetite, held_up=pool.overloaded, begun=True)
        wait_any(pool.wait_handles(), 0.02)
    assert (pool.size, len(watched.started)) == (4, 3)  # a third for the task; a fourth has nothing to do
