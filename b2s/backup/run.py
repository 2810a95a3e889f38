"""One run of `b2s backup`: lock, look, decide, snapshot everything due, then send source by source.

Read `BackupRun._locked` for the order of steps. Only this process decides; everything it starts ends with it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from b2s.adapters import btrfs, host, logs
from b2s.adapters.clock import Clock, SystemClock
from b2s.adapters.lock import RunLock
from b2s.adapters.s3_on_demand import bucket_on_demand
from b2s.adapters.state import State
from b2s.backup import figures, leftovers, retention
from b2s.backup.observe import Observer
from b2s.backup.run_parts import RunParts
from b2s.backup.run_result import BackupOptions, RunResult, SourceResult
from b2s.core import events
from b2s.core.journal import BackupIntent
from b2s.core.layout import Layout
from b2s.core.manifest import Manifest
from b2s.core.model import ActionKind, Reason, StoreFacts
from b2s.core.plan import Decision, PlanOptions
from b2s.core.progress import NoProgress, ProgressSink
from b2s.core.settings import Settings, SourceSettings
from b2s.errors import (
    B2sError,
    BucketMissing,
    CertificateRejected,
    ClockSkewed,
    CredentialsMissing,
    LockHeld,
    SendFailed,
    SourceMissing,
    SourceRefused,
    Stopped,
    StoreUnavailable,
    StreamChanged,
    UsageError,
)
from b2s.processes.signals import StopRequest

if TYPE_CHECKING:
    from b2s.backup.source_backup import SourceBackup

# After one of these the next source would fail the same way, after as long a wait.
_ENDS_THE_RUN = (StoreUnavailable, CredentialsMissing, BucketMissing, CertificateRejected, ClockSkewed)


class BackupRun:
    """Everything one invocation does; `execute` never raises a `B2sError`, it returns it."""

    def __init__(
        self,
        settings: Settings,
        options: BackupOptions,
        run_id: str,
        *,
        progress: ProgressSink | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings
        self.options = options
        self.run_id = run_id
        self.progress = progress or NoProgress()
        self.on_begun: Callable[[], None] = lambda: None  # called once the lock is held
        self.clock = clock or SystemClock()
        self.log = logs.get_logger()
        self.result = RunResult()
        self._facts: StoreFacts | None = None
        self._state: State | None = None

    def execute(self) -> RunResult:
        """Do what is due.

        Returns:
            What was planned, how each source ended, and the first error. With `--dry-run` only the plan.
        """
        try:
            sources = chosen_sources(self.settings, self.options.sources)
            if self.options.dry_run:
                self.result = make_plan(self.settings, self.options)
                self._fail_refused(self.result.plan)
                return self.result
            stop = StopRequest.install()
            lock = RunLock(self.settings.lock_path, self.run_id)
            stale = self._acquire(lock)
            try:
                if stale is not None:
                    self.log.warning(events.LOCK_STALE_REMOVED, of_run=stale.run_id, holder_pid=stale.pid)
                with stop.interrupting():
                    self.on_begun()
                self._locked(sources, stop)
            except B2sError as error:
                self.result.note(error)  # before the lock's own trouble, if it has any
            finally:
                lock.release()
        except B2sError as error:
            self.result.note(error)
        return self.result

    def _acquire(self, lock: RunLock) -> Any:
        try:
            return lock.acquire()
        except LockHeld as error:
            self.log.warning(events.LOCK_CONTENDED, **error.context)
            raise

    def _locked(self, sources: tuple[SourceSettings, ...], stop: StopRequest) -> None:
        identity = host.host_identity(self.settings.state_path + ".host-id")
        with State.open(self.settings.state_path, identity.id) as state:
            self._state = state
            if state.rebuilt_reason is not None:
                self.log.warning(events.STATE_REBUILT, reason=state.rebuilt_reason, moved_to=state.moved_to)
            leftovers.remove_processes(state, self.run_id, self.log)
            leftovers.remove_spools(self.settings, self.log)
            bucket = bucket_on_demand(self.settings.s3, stop=stop.check, on_retry=self._call_retried)
            parts = RunParts(
                self.settings, self.run_id, bucket, state, stop, self.log, self.clock, identity, self.progress
            )
            try:
                if self.options.no_s3:
                    self._measure(parts, sources)
                else:
                    self._back_up(parts, sources)
            finally:
                leftovers.forget_processes(state, self.run_id)
                bucket.close()

    def _back_up(self, parts: RunParts, sources: tuple[SourceSettings, ...]) -> None:
        """Decide for every source, then snapshot all that are due at one moment, then send one by one."""
        due: list[tuple[SourceBackup, Decision]] = []
        for source in sources:
            with self._guard(source):
                decision = self._decide(parts, source, self.options.plan)
                if decision.action is ActionKind.SKIP:
                    self._skip(parts, source)
                else:
                    due.append((self._prepare(parts, source, decision), decision))
        begun: list[tuple[SourceBackup, Decision, BackupIntent]] = []
        for backup, decision in due:
            with self._guard(backup.source):
                begun.append((backup, decision, self._begin(backup, decision)))
        for backup, decision, intent in begun:
            with self._guard(backup.source):
                self._finish(parts, backup, decision, intent)

    def _decide(self, parts: RunParts, source: SourceSettings, options: PlanOptions) -> Decision:
        """Observe and decide; what the journal did not know to be committed is forgotten on the way."""
        with parts.stop.interrupting():
            observer = Observer(parts)
            decision = observer.decide(source, options)
        self.result.plan.append(decision)
        self.result.figures[source.name] = figures.planned(decision, observer.chain)
        log_decision(self.log, decision)
        self.result.sources[source.name] = SourceResult(
            source.name, decision.action, str(decision.reason), ok=decision.action is not ActionKind.REFUSE
        )
        if decision.settled is not None:
            parts.state.finish(decision.settled.intent.backup_id)
        if decision.action is ActionKind.REFUSE:
            raise refusal(decision)
        if parts.state.created and decision.previous is not None:
            self.log.warning(events.STATE_REBUILT, source=source.name, reason="there was no state file")
        retention.delete_unfinished(parts, source)
        retention.recognise(parts, source, btrfs.subvolume_facts(source.path))
        return decision

    def _skip(self, parts: RunParts, source: SourceSettings) -> None:
        """Tidy up where nothing is due."""
        outcome = parts.state.outcomes().get(source.name)
        if outcome is not None and not outcome.ok:  # whatever it was, it is over
            with parts.stop.interrupting():
                layout = Layout(parts.settings.s3.prefix, source.name)
                leftovers.abort_uploads(parts.bucket, layout, parts.state, self.log)
            parts.state.record_outcome(source.name, self.clock.now(), True, None, None)
        retention.prune(parts, source)  # what a run that was killed after its commit left over

    def _prepare(self, parts: RunParts, source: SourceSettings, decision: Decision) -> SourceBackup:
        """Clear the way for a backup: the bucket is there and usable, and nothing dead is left of this source."""
        from b2s.backup.source_backup import SourceBackup  # with all that sending needs: not when nothing is due
        from b2s.processes.child import process_context

        process_context()  # gets ready while we talk to the store
        backup = SourceBackup(parts, source)
        outcome = parts.state.outcomes().get(source.name)
        if outcome is None or outcome.ok:  # until its end: what we leave open if killed is then tidied, due or not
            parts.state.record_outcome(source.name, self.clock.now(), False, None, None)
        self._probe(parts, backup.layout)
        if decision.abandoned is not None:
            backup.drop(decision.abandoned)
        with parts.stop.interrupting():
            leftovers.abort_uploads(parts.bucket, backup.layout, parts.state, self.log)
        return backup

    @staticmethod
    def _begin(backup: SourceBackup, decision: Decision) -> BackupIntent:
        """Take the snapshot, or take up what was begun."""
        if decision.resume is not None:
            return replace(decision.resume.intent, send_parent_path=decision.send_parent_path)
        return backup.begin(decision)

    def _finish(self, parts: RunParts, backup: SourceBackup, decision: Decision, intent: BackupIntent) -> None:
        """Send and commit; after a resumed backup, go on with what is due by now."""
        try:
            manifest = backup.finish(intent, self._probe(parts, backup.layout), resuming=decision.resume is not None)
        except StreamChanged as error:
            self.log.warning(events.SEND_FAILED, source=backup.source.name, error=error.message)
            progress = parts.state.progress(intent.backup_id)
            if progress is not None:
                backup.drop(progress)
            self._again(parts, backup, replace(self.options.plan, once=True))
            return
        self._record(parts, backup.source, decision, manifest)
        retention.prune(parts, backup.source)
        if decision.resume is not None:
            self._again(parts, backup, self.options.plan.after_resume(intent.kind))

    def _again(self, parts: RunParts, backup: SourceBackup, options: PlanOptions) -> None:
        before = self.result.sources[backup.source.name]
        decision = self._decide(parts, backup.source, options)
        if decision.action is ActionKind.SKIP:
            self.result.sources[backup.source.name] = before  # what this run did counts, not that nothing else is due
        if decision.action is ActionKind.SKIP:
            self._skip(parts, backup.source)
            return
        intent = self._begin(self._prepare(parts, backup.source, decision), decision)
        manifest = backup.finish(intent, self._probe(parts, backup.layout))
        self._record(parts, backup.source, decision, manifest)
        retention.prune(parts, backup.source)

    def _record(self, parts: RunParts, source: SourceSettings, decision: Decision, manifest: Manifest) -> None:
        parts.state.record_outcome(source.name, self.clock.now(), True, None, None)
        self.result.sources[source.name] = SourceResult(
            source.name, decision.action, str(decision.reason), ok=True, backup_id=manifest.backup_id
        )
        self.result.figures[source.name] = figures.committed(self.result.figures[source.name], manifest)

    def _probe(self, parts: RunParts, layout: Layout) -> StoreFacts:
        if self._facts is None:
            with parts.stop.interrupting():
                self._facts = parts.bucket.probe(layout.probe_key)
            self.log.info(
                events.STORE_PROBED,
                verifies_sha256=self._facts.sha256,
                verifies_content_md5=self._facts.content_md5,
                etag_is_md5=self._facts.etag_is_md5,
            )
        return self._facts

    def _measure(self, parts: RunParts, sources: tuple[SourceSettings, ...]) -> None:
        from b2s.backup.source_backup import SourceBackup

        for source in sources:
            with self._guard(source):
                SourceBackup(parts, source).measure()

    def _guard(self, source: SourceSettings) -> _Guard:
        return _Guard(self, source)

    def _failed(self, source: SourceSettings, error: B2sError) -> None:
        """Note that one source failed; the others go on (I11)."""
        self.result.failed(source.name, error)
        self._remember_failure(source, error)
        self.result.figures[source.name] = figures.failed(self.result.figures.get(source.name), source.name)
        if isinstance(error, SendFailed):
            self.log.error(
                events.SEND_FAILED, source=source.name, error=error.message, stderr=error.context.get("send_stderr")
            )
        self.log.error(
            events.BACKUP_FAILED,
            source=source.name,
            error=error.message,
            hint=error.hint,
            send_stderr=error.context.get("send_stderr"),
        )

    def _remember_failure(self, source: SourceSettings, error: B2sError) -> None:
        """Keep the error for `b2s status`; that it cannot be kept must not hide it."""
        if self._state is None or self.options.no_s3 or isinstance(error, Stopped):
            return
        try:
            self._state.record_outcome(source.name, self.clock.now(), False, error.message, error.hint)
        except B2sError as later:
            error.add_note(f"it could not be kept for b2s status: {later.message}")

    def _fail_refused(self, plan: list[Decision]) -> None:
        for decision in plan:
            if decision.action is ActionKind.REFUSE:
                self.result.note(refusal(decision))

    def _call_retried(self, error: B2sError, attempt: int, wait_seconds: float) -> None:
        self.progress.retried()
        self.log.warning(events.PART_RETRIED, error=error.message, attempt=attempt, wait_seconds=round(wait_seconds, 3))


@dataclass(frozen=True, slots=True)
class _Guard:
    """Keeps one source's failure from the others, unless it is everybody's."""

    run: BackupRun
    source: SourceSettings

    def __enter__(self) -> None:
        """Begin the guarded step."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        """Note a known failure and go on, or let it end the run."""
        if not isinstance(error, B2sError):
            return False
        self.run._failed(self.source, error)
        return not isinstance(error, (Stopped, *_ENDS_THE_RUN))


def chosen_sources(settings: Settings, names: tuple[str, ...]) -> tuple[SourceSettings, ...]:
    """Return the sources named on the command line, all when none is.

    Raises:
        UsageError: A name is not in the config.
    """
    known = {source.name: source for source in settings.sources}
    for name in names:
        if name not in known:
            raise UsageError(f"no source is named {name!r}", hint=f"the config has: {', '.join(known)}")
    return tuple(source for source in settings.sources if not names or source.name in names)


def make_plan(settings: Settings, options: BackupOptions) -> RunResult:
    """Return what a run would do now; nothing is changed, the lock is not taken.

    A source that cannot be decided does not keep the others from being planned (I11): the result has its error.

    Raises:
        B2sError: The state cannot be read, or somebody stopped it.
    """
    result = RunResult()
    identity = host.host_identity(settings.state_path + ".host-id")
    stop = StopRequest.install()
    bucket = bucket_on_demand(settings.s3, stop=stop.check)
    with closing(bucket), State.open_read_only(settings.state_path, identity.id) as state:
        parts = RunParts(settings, "", bucket, state, stop, logs.get_logger(), SystemClock(), identity, NoProgress())
        observer = Observer(parts)
        for source in chosen_sources(settings, options.sources):
            try:
                with stop.interrupting():
                    result.plan.append(observer.decide(source, options.plan))
            except Stopped:
                raise
            except B2sError as error:
                result.failed(source.name, error)
                if isinstance(error, _ENDS_THE_RUN):
                    break
    return result


def refusal(decision: Decision) -> B2sError:
    """Return a refusing decision as the error it is."""
    kind: Callable[..., B2sError] = SourceMissing if decision.reason is Reason.SOURCE_MISSING else SourceRefused
    return kind(f"source {decision.source}: {decision.detail}", hint=decision.hint)


def log_decision(log: Any, decision: Decision) -> None:
    """Say what was decided and why."""
    log.info(
        events.PLAN_DECIDED,
        source=decision.source,
        action=str(decision.action),
        reason=str(decision.reason),
        detail=decision.detail,
        next_due=decision.next_due.isoformat() if decision.next_due else None,
    )
