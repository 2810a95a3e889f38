"""How every source stands, from the config and the state: what `b2s status` shows.

The bucket is asked only for a source of which the state knows nothing (it is a cache, and may be lost).

A source is *overdue* when its next incremental or full is late by more than a grace: the interval itself, but at
most a day or, of long intervals, a tenth. So a weekly source whose Sunday 02:00 slot was missed is overdue from
Monday 02:00 on; a full that became due on a Friday may wait for the weekly call of cron. A source that was never
backed up is overdue.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from b2s.adapters.clock import Clock, SystemClock
from b2s.adapters.s3_on_demand import bucket_on_demand
from b2s.adapters.state import Outcome, State
from b2s.backup.manifests import ManifestCache, Manifests
from b2s.backup.observe import rhythm_of
from b2s.backup.run_parts import store_name
from b2s.core.journal import BackupProgress
from b2s.core.layout import Layout
from b2s.core.plan import next_dues
from b2s.core.settings import Settings, SourceSettings
from b2s.core.world import BackupSummary, HeadChain, Rhythm
from b2s.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from b2s.adapters.s3 import Bucket

DAY = timedelta(days=1)
RETRY_FOR_MAX = timedelta(seconds=10)  # a probe of a monitoring system has no half hour


def grace_of(interval: timedelta) -> timedelta:
    """Return how late a backup of this interval may be before somebody should look."""
    return min(interval, max(DAY, interval / 10))


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How one source stands."""

    source: str
    now: datetime  # aware UTC
    rhythm: Rhythm
    chain: HeadChain | None  # the newest; None: there is no backup, or it is not known
    chain_bytes: int
    unchanged_at: datetime | None  # when the source was last found unchanged since its newest backup
    interrupted: BackupProgress | None
    outcome: Outcome | None  # of the last run that did something
    problem: str | None = None  # why the bucket could not be asked

    @property
    def next_due(self) -> datetime:
        """Return when the next backup is, or was, due, aware UTC."""
        return self._dues()[0]

    @property
    def overdue(self) -> bool:
        """Return whether a backup is late beyond its grace."""
        if self.chain is None:
            return True
        late = self._is_late(self._made_at(self.chain), self.rhythm.incremental_every)
        full = self.chain.full
        return late or (full is not None and self._is_late(full.created_at, self.rhythm.full_every))

    def document(self) -> dict[str, Any]:
        """Return this source as `status --json` shows it."""
        head = self.chain.head if self.chain else None
        failed = self.outcome is not None and self.outcome.error is not None
        error = self.outcome.error if self.outcome is not None and failed else self.problem
        return {
            "source": self.source,
            "last_backup": _backup_document(head) if head else None,
            "age_seconds": max(0, round((self.now - head.created_at).total_seconds())) if head else None,
            "next_due": self.next_due.isoformat(),
            "overdue": self.overdue,
            "chain_length": self.chain.length if self.chain else 0,
            "chain_bytes": self.chain_bytes,
            "unchanged_at": self.unchanged_at.isoformat() if self.unchanged_at else None,
            "interrupted": _progress_document(self.interrupted) if self.interrupted else None,
            "last_error": error,
            "last_error_at": self.outcome.at.isoformat() if self.outcome is not None and failed else None,
            "hint": self.outcome.hint if self.outcome is not None and failed else None,
        }

    def _dues(self) -> tuple[datetime, datetime | None]:
        if self.chain is None:
            return self.now, None
        full_made_at = self.chain.full.created_at if self.chain.full else None
        return next_dues(self.rhythm, self._made_at(self.chain), full_made_at, self.now)

    def _made_at(self, chain: HeadChain) -> datetime:
        return max(chain.head.created_at, self.unchanged_at or chain.head.created_at)

    def _is_late(self, made_at: datetime, interval: timedelta) -> bool:
        return self.now > self.rhythm.slots.next_due(made_at, interval, self.now) + grace_of(interval)


@dataclass(frozen=True, slots=True)
class StatusReport:
    """How all sources of a config stand."""

    sources: tuple[SourceStatus, ...]

    @classmethod
    def read(cls, settings: Settings, clock: Clock | None = None) -> StatusReport:
        """Look at the state, and at the bucket where the state knows nothing of a source.

        Raises:
            StateError: The state cannot be read.
        """
        now = (clock or SystemClock()).now()
        hasty = settings.s3.model_copy(update={"retry_for": min(settings.s3.retry_for, RETRY_FOR_MAX)})
        with closing(bucket_on_demand(hasty)) as bucket, State.open_read_only(settings.state_path) as state:
            asked = _Asked(bucket, settings.s3.prefix)
            return cls(tuple(_status_of(settings, source, state, now, asked) for source in settings.sources))

    def document(self) -> dict[str, Any]:
        """Return the JSON document of `b2s status`."""
        return {"sources": [source.document() for source in self.sources]}


@dataclass(slots=True)
class _Asked:
    """The bucket, as long as it answers: who looks at fifty sources does not wait fifty times for a dead line."""

    bucket: Bucket
    prefix: str
    silent: StoreUnavailable | None = None

    def newest_chain(self, source: str, cache: ManifestCache) -> tuple[HeadChain | None, int]:
        """Return the newest chain in the bucket and its bytes.

        Raises:
            StoreError: The bucket could not be asked.
        """
        if self.silent is not None:
            raise self.silent
        manifests = Manifests(self.bucket, Layout(self.prefix, source), cache)
        try:
            manifests.list()
            return manifests.head_chain(), sum(backup.stream_bytes for backup in manifests.backups)
        except StoreUnavailable as error:
            self.silent = error
            raise


def _status_of(settings: Settings, source: SourceSettings, state: State, now: datetime, asked: _Asked) -> SourceStatus:
    store = store_name(settings.s3)
    cache = ManifestCache(state, store, source.name)
    chain, problem = cache.head_chain(), None
    chain_bytes = sum(backup.stream_bytes for backup in cache.chain(chain.head)) if chain else 0
    if chain is None:
        try:
            chain, chain_bytes = asked.newest_chain(source.name, cache)
        except StoreError as error:
            problem = error.message
    begun = [each for each in state.unfinished() if each.intent.source.name == source.name]
    return SourceStatus(
        source=source.name,
        now=now,
        rhythm=rhythm_of(settings.schedule_of(source)),
        chain=chain,
        chain_bytes=chain_bytes,
        unchanged_at=state.unchanged_at(store, source.name, chain.head.sequence) if chain else None,
        interrupted=next((each for each in begun if each.intent.store == store), None),
        outcome=state.outcomes().get(source.name),
        problem=problem,
    )


def _backup_document(backup: BackupSummary) -> dict[str, Any]:
    return {
        "backup_id": backup.backup_id,
        "sequence": backup.sequence,
        "kind": str(backup.kind),
        "created_at": backup.created_at.isoformat(),
        "committed_at": backup.committed_at.isoformat(),
        "bytes": backup.stream_bytes,
    }


def _progress_document(progress: BackupProgress) -> dict[str, Any]:
    intent = progress.intent
    return {
        "backup_id": intent.backup_id,
        "kind": str(intent.kind),
        "created_at": intent.created_at.isoformat(),
        "stored_bytes": progress.stored_bytes,
    }
