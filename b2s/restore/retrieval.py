"""Retrieval from archive classes: one pass asks for everything that is cold, then it is waited for or left.

Nothing about it is remembered here. Each pass asks the store how each object is and requests only what nobody has
requested yet, so the command may be killed and repeated at will and no object is asked (and paid) for twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from b2s.adapters.clock import Clock
from b2s.adapters.s3 import Bucket
from b2s.core import events
from b2s.core.model import ObjectFacts, Retrieval
from b2s.core.retrieval_times import RetrievalTime, retrieval_time, retrieval_times
from b2s.core.units import format_bytes, format_duration
from b2s.errors import RetrievalPending, StoreError, StoreRefused
from b2s.restore.points import PresentChunk

# Decides how long a temporary copy lives at first; where the line is slower, `stay_readable` adds to it.
ASSUMED_BYTES_PER_SECOND = 5_000_000
DOWNLOAD_MARGIN = timedelta(hours=1)
RETRIEVAL_DAYS_MAX = 365
LOOK_AGAIN_AFTER = timedelta(hours=1)  # while a download runs
ALIVE_AT_LEAST = timedelta(days=2)  # a copy with less left is extended; more than a thaw's whole day

_UNREADABLE = (Retrieval.COLD, Retrieval.ONGOING)


@dataclass(frozen=True, slots=True)
class RetrievalPolicy:
    """How archived chunks are asked for and waited for."""

    tier: str
    days: int  # how long the temporary copies live at least
    wait: bool
    poll_interval: timedelta
    timeout: timedelta  # of the waiting


@dataclass(frozen=True, slots=True)
class _Terms:
    """What is known before anything is asked for."""

    time: RetrievalTime
    other_tiers: str  # how long those take, for people; empty where there are none
    days: int  # how long the temporary copies are to live
    download: timedelta  # how long the download of everything takes at least to be planned for


class RetrievalPass:
    """Makes every chunk of a chain readable, or says when to come back."""

    def __init__(
        self,
        bucket: Bucket,
        policy: RetrievalPolicy,
        clock: Clock,
        log: Any,
        progress: Callable[[str], None] = lambda line: None,
        counted: Callable[[int, int], None] = lambda ready, archived: None,
    ) -> None:
        """Prepare.

        Args:
            bucket: Where the chunks are.
            policy: How to ask and wait.
            clock: The time and the waiting.
            log: Gets the events.
            progress: Gets one line for a person: what is asked for, and after each poll how far it is.
            counted: Told after each poll how many chunks of how many can be read.
        """
        self._bucket = bucket
        self._policy = policy
        self._clock = clock
        self._progress = progress
        self._counted = counted
        self._log = log
        self._requested: set[str] = set()  # keys; a store may be slow to show what it was asked
        self._facts: dict[str, ObjectFacts] = {}  # of the archived chunks, once all of them can be read
        self._days = policy.days
        self._looked_at = 0.0  # monotonic seconds

    def run(self, chunks: Sequence[PresentChunk]) -> list[PresentChunk]:
        """Return the same chunks, all readable, with fresh facts.

        Raises:
            RetrievalPending: `wait` is off and some are not ready, or the timeout passed.
            UsageError: The tier is not available for the class; nothing was asked for.
            StoreRefused: A temporary copy would expire before the download ends, and cannot be extended.
        """
        archived = [chunk for chunk in chunks if chunk.facts.retrieval is not Retrieval.NOT_NEEDED]
        if not archived:
            return list(chunks)
        terms = self._terms(chunks, archived)
        facts = {chunk.key: chunk.facts for chunk in archived}
        deadline = self._clock.monotonic() + self._policy.timeout.total_seconds()
        waited = False
        while True:
            self._request(facts, terms)
            pending = [fact for fact in facts.values() if fact.retrieval in _UNREADABLE]
            if not pending:
                break
            left = deadline - self._clock.monotonic()
            if not self._policy.wait or left <= 0:
                raise self._pending(pending, terms.time)
            self._report(facts, pending)
            waited = True
            self._clock.sleep(min(left, self._policy.poll_interval.total_seconds()))
            facts = self._asked_again(facts)
        self._facts, self._days, self._looked_at = facts, terms.days, self._clock.monotonic()
        if waited:
            self._log.info(events.RETRIEVAL_READY, chunks=len(archived))
            self._progress(f"all {len(archived)} archived chunks can be read now")
        return [replace(chunk, facts=facts.get(chunk.key, chunk.facts)) for chunk in chunks]

    def stay_readable(self) -> None:
        """Extend the copies that would expire soon; call it often while a download runs, it looks once an hour.

        What cannot be extended may still be long enough: that is for the download to find out.
        """
        now = self._clock.monotonic()
        if not self._facts or now - self._looked_at < LOOK_AGAIN_AFTER.total_seconds():
            return
        self._looked_at = now
        for key, fact in self._facts.items():
            if _expires_before(fact, self._clock.now() + ALIVE_AT_LEAST):
                try:
                    self._facts[key] = self._asked_for_more(fact, self._days)
                except StoreError as error:
                    self._log.warning(events.RETRIEVAL_EXPIRES, key=key, error=error.message)
                    return  # the next hour tries again; nothing is fed meanwhile

    def _terms(self, chunks: Sequence[PresentChunk], archived: Sequence[PresentChunk]) -> _Terms:
        """Work out how long it takes, and for how many days to ask.

        Longer than configured where the first copy would be gone before the last one has come and all are downloaded.
        """
        seconds = sum(chunk.chunk.bytes for chunk in chunks) / ASSUMED_BYTES_PER_SECOND
        download = timedelta(seconds=seconds) + DOWNLOAD_MARGIN
        classes = {chunk.facts.storage_class for chunk in archived}
        expected = retrieval_time(classes, self._policy.tier)
        needed = download + timedelta(hours=expected.hours_max)
        days = max(self._policy.days, math.ceil(needed / timedelta(days=1)) + 1)
        others = {tier: time for tier, time in retrieval_times(classes).items() if tier != self._policy.tier}
        told = ", ".join(f"{tier}: {time}" for tier, time in others.items())
        return _Terms(expected, told, min(days, RETRIEVAL_DAYS_MAX), download)

    def _request(self, facts: dict[str, ObjectFacts], terms: _Terms) -> None:
        """Ask for what is cold, and for more days for what would be cold again too early."""
        cold = [fact for fact in facts.values() if fact.retrieval is Retrieval.COLD and fact.key not in self._requested]
        waiting = any(fact.retrieval in _UNREADABLE for fact in facts.values())
        needed_until = self._clock.now() + terms.download + timedelta(hours=terms.time.hours_max if waiting else 0)
        short = [fact for fact in facts.values() if _expires_before(fact, needed_until)]
        if cold:
            self._announce(cold, terms)
        for fact in cold:
            self._requested.add(fact.key)
            self._bucket.request_retrieval(fact, terms.days, self._policy.tier)
        for fact in cold:
            facts[fact.key] = self._bucket.head(fact.key)
        for fact in short:
            facts[fact.key] = self._extended(fact, terms.days, needed_until)

    def _announce(self, cold: Sequence[ObjectFacts], terms: _Terms) -> None:
        size = sum(fact.bytes for fact in cold)
        others = f" ({terms.other_tiers})" if terms.other_tiers else ""
        self._progress(
            f"asking for {len(cold)} archived chunks, {format_bytes(size)}, with tier {self._policy.tier}: "
            f"about {terms.time}{others}, then readable for {terms.days} days"
        )
        self._log.info(
            events.RETRIEVAL_REQUESTED,
            chunks=len(cold),
            bytes=size,
            tier=self._policy.tier,
            days=terms.days,
            hours_min=terms.time.hours_min,
            hours_max=terms.time.hours_max,
        )

    def _extended(self, fact: ObjectFacts, days: int, needed_until: datetime) -> ObjectFacts:
        """Ask again for a temporary copy that would expire too early; return the facts after that."""
        facts = self._asked_for_more(fact, days)
        if _expires_before(facts, needed_until):
            raise StoreRefused(
                f"the temporary copy of {fact.key} expires before the download would end, and the store does not "
                "extend it",
                hint="wait until it has expired, then run again with a larger restore.retrieval_days",
            )
        return facts

    def _asked_for_more(self, fact: ObjectFacts, days: int) -> ObjectFacts:
        self._bucket.request_retrieval(fact, days, self._policy.tier)
        self._log.info(events.RETRIEVAL_EXTENDED, key=fact.key, days=days)
        return self._bucket.head(fact.key)

    def _asked_again(self, facts: dict[str, ObjectFacts]) -> dict[str, ObjectFacts]:
        """HEAD what is not ready yet; the rest is ready and stays so for days."""
        return {key: self._bucket.head(key) if fact.retrieval in _UNREADABLE else fact for key, fact in facts.items()}

    def _report(self, facts: dict[str, ObjectFacts], pending: Sequence[ObjectFacts]) -> None:
        ready = len(facts) - len(pending)
        self._log.info(events.RETRIEVAL_WAITING, ready=ready, pending=len(pending))
        self._counted(ready, len(facts))
        interval = format_duration(self._policy.poll_interval)
        self._progress(f"{ready} of {len(facts)} archived chunks can be read; asking again in {interval}")

    def _pending(self, pending: Sequence[ObjectFacts], expected: RetrievalTime) -> RetrievalPending:
        size = format_bytes(sum(fact.bytes for fact in pending))
        back = self._clock.now() + timedelta(hours=expected.hours_max)
        return RetrievalPending(
            f"{len(pending)} archived chunks, {size}, are being retrieved; that takes about {expected}",
            hint=f"run the same command again at {back:%Y-%m-%d %H:%M} UTC or later; nothing is asked for twice",
            pending=len(pending),
            come_back_at=back.isoformat(),
        )


def _expires_before(fact: ObjectFacts, moment: datetime) -> bool:
    return (
        fact.retrieval is Retrieval.READY
        and fact.retrieval_expires_at is not None
        and fact.retrieval_expires_at < moment
    )
