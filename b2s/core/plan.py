"""What a run does with one source, and why: the observed world in, one decision out.

`backup` executes exactly what `plan` and `--dry-run` print, because all three print and execute this. Read
`decide` from top to bottom: its order is the order of precedence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from b2s.core.journal import BackupProgress
from b2s.core.manifest import ManifestLink, SendParent
from b2s.core.model import ActionKind, Kind, Reason, SubvolumeFacts
from b2s.core.send_parent import SendParentChoice, choose_send_parent, doubt_about, is_unchanged
from b2s.core.units import format_bytes
from b2s.core.world import BackupSummary, HeadChain, Health, Rhythm, SourceWorld, Unfinished

_HEALTH_REASONS = {
    Health.MANIFEST_MISSING: Reason.MANIFEST_MISSING,
    Health.CHUNK_MISSING: Reason.CHUNK_MISSING,
    Health.CHAIN_BROKEN: Reason.CHAIN_BROKEN,
}


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the command line asks for."""

    once: bool = False  # due or not, changed or not
    full: bool = False  # a full; implies once
    fresh: bool = False  # drop an interrupted backup
    adopt: bool = False  # go on under a name that another host or subvolume wrote

    def after_resume(self, kind: Kind) -> PlanOptions:
        """Return what is still asked for once an interrupted backup of this kind was finished in the same run."""
        return replace(self, once=False, fresh=False, full=self.full and kind is not Kind.FULL)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a run does with one source."""

    source: str
    action: ActionKind
    reason: Reason
    detail: str  # one sentence for people
    next_due: datetime | None = None  # when the next backup is due once this is done, aware UTC
    next_full_due: datetime | None = None
    hint: str | None = None
    # Of a backup to make:
    sequence: int | None = None
    previous: ManifestLink | None = None
    send_parent: SendParent | None = None  # incremental: what its manifest will say
    send_parent_snapshot: SubvolumeFacts | None = None  # incremental: what `btrfs send -p` gets
    # Of a backup that was begun:
    resume: BackupProgress | None = None
    settled: BackupProgress | None = None  # committed already, the journal did not know: forget it
    abandoned: BackupProgress | None = None  # abort its uploads, remove its snapshot, forget it
    needs_chunks: bool = False  # valid only if every chunk of the chain exists, which nobody looked at yet

    @property
    def makes_backup(self) -> bool:
        """Return whether a new snapshot is taken."""
        return self.action in (ActionKind.FULL, ActionKind.INCREMENTAL)

    @property
    def kind(self) -> Kind | None:
        """Return the kind of the backup that is made or gone on with; None where there is none."""
        if self.resume is not None:
            return self.resume.intent.kind
        return Kind(self.action.value) if self.makes_backup else None

    @property
    def send_parent_path(self) -> str | None:
        """Return what `btrfs send -p` gets; None for a full."""
        return None if self.send_parent_snapshot is None else self.send_parent_snapshot.path


def decide(world: SourceWorld, options: PlanOptions) -> Decision:
    """Return what is to be done with this source now.

    A decision with `needs_chunks` stands on a chain whose health is `UNCHECKED`: whoever executes or prints it
    looks at the chunks first and asks again.
    """
    unfinished = world.unfinished
    if unfinished is not None and unfinished.holder == unfinished.progress.intent.backup_id:
        return replace(decide(replace(world, unfinished=None), options), settled=unfinished.progress)
    if unfinished is not None:
        obstacle = "it is dropped as asked" if options.fresh else _obstacle_to_resume(world, unfinished)
        if obstacle is None:
            return _resume(world, unfinished)
        decision = _decide_new(world, options, interrupted=unfinished)
        if not decision.makes_backup:
            return decision  # refused: what was begun is kept until somebody decided
        begun = unfinished.progress.intent.backup_id
        detail = f"{decision.detail}; {begun} cannot be resumed: {obstacle}"
        return replace(decision, abandoned=unfinished.progress, detail=detail)
    return _decide_new(world, options, interrupted=None)


def _decide_new(world: SourceWorld, options: PlanOptions, interrupted: Unfinished | None) -> Decision:
    """Decide as if nothing were resumed; a source with an interrupted backup is always due."""
    source, chain = world.source, world.chain
    if source is None:
        return _refuse(world, Reason.SOURCE_MISSING, world.source_problem, world.source_hint)
    if chain is None:
        return _begin(world, options)
    choice = choose_send_parent(chain.head.snapshot, source, world.candidates)
    stranger = _stranger(world, source, chain.head, choice)
    if stranger is not None:
        return _stranger_decision(world, options, chain.head, stranger)
    full_reason = _reason_for_full(world, options, chain)
    if full_reason is not None:
        return _full(world, *full_reason)
    made_at = max(chain.head.created_at, world.unchanged_at or chain.head.created_at)
    due = _is_due(world, made_at)
    if not (due or options.once or interrupted):
        detail = f"the last backup, {_naming(chain.head)}, is not old enough"
        return _skip(world, Reason.NOT_DUE, detail, made_at)
    if interrupted is not None and interrupted.progress.intent.kind is Kind.FULL and not options.fresh:
        return _full(world, Reason.INTERRUPTED, "the full that was begun is made anew")
    longest = world.rhythm.max_chain_length
    if longest is not None and chain.length >= longest:
        detail = f"the chain has {chain.length} backups, {longest} are allowed"
        return _full(world, Reason.CHAIN_LENGTH, detail)
    if choice.snapshot is None or choice.reason is not None:
        return _full(world, choice.reason or Reason.SEND_PARENT_MISSING, choice.detail)
    skippable = world.rhythm.skip_unchanged and not options.once and not interrupted
    if skippable and is_unchanged(source, choice.snapshot):
        detail = f"nothing was written since the last backup, {_naming(chain.head)}"
        return _skip(world, Reason.UNCHANGED, detail, world.now, needs_chunks=not chain.checked)
    if due:
        reason, detail = Reason.INTERVAL, f"the last backup is {_naming(chain.head)}"
    else:
        reason, detail = (Reason.INTERRUPTED, "begun anew") if interrupted else (Reason.FORCED, "asked for")
    return _incremental(world, chain, choice.snapshot, reason, detail)


# --- who, and whether ------------------------------------------------------------------------------


def _stranger(
    world: SourceWorld, source: SubvolumeFacts, head: BackupSummary, choice: SendParentChoice
) -> Reason | None:
    """Return why the chain in the bucket is not this source's; None when it is.

    A snapshot that is here continues the chain whatever the host, if the source is the subvolume that was
    backed up or was made from it. An unrelated subvolume at the same path is another source, also while the
    old one's snapshots still lie beside it.
    """
    same_source = source.uuid == head.source.uuid
    same_host = world.host_id == head.host.id
    if same_source and same_host:
        return None
    lineage = {source.uuid, *world.ancestors}
    if choice.snapshot is not None and lineage & {head.source.uuid, choice.snapshot.uuid}:
        return None
    return Reason.SOURCE_REPLACED if same_host else Reason.FOREIGN_HOST


def _obstacle_to_resume(world: SourceWorld, unfinished: Unfinished) -> str | None:
    """Return why the interrupted backup cannot be finished; None when it can."""
    intent = unfinished.progress.intent
    if unfinished.holder is not None:
        return f"number {intent.sequence} was taken by {unfinished.holder}"
    if intent.previous != world.top:
        return "the bucket's newest backup is another one than when it was begun"
    if unfinished.snapshot is None:
        return "its snapshot is gone"
    if not unfinished.snapshot.read_only:
        return "its snapshot was made writable"
    if intent.send_parent is None:
        return None
    if world.chain is None or world.chain.health in _HEALTH_REASONS:
        return f"its chain cannot be used: {world.chain.detail if world.chain else 'no manifest can be read'}"
    if unfinished.send_parent is None:
        return "the snapshot of its send parent is gone"
    if doubt_about(world.chain.head.snapshot, unfinished.send_parent) is not None:
        return "the snapshot of its send parent was changed"
    return None


def _reason_for_full(world: SourceWorld, options: PlanOptions, chain: HeadChain) -> tuple[Reason, str] | None:
    """Return why a full is due now, whether an incremental is or not."""
    if options.full:
        return Reason.FORCED, "asked for"
    if world.lost:
        return Reason.MANIFEST_MISSING, world.lost
    if chain.health in _HEALTH_REASONS:
        return _HEALTH_REASONS[chain.health], chain.detail
    if chain.full is None:
        return Reason.CHAIN_BROKEN, "the chain leads to no full"
    rhythm = world.rhythm
    if rhythm.slots.is_due(chain.full.created_at, rhythm.full_every, world.now):
        return Reason.FULL_INTERVAL, f"the last full is {_naming(chain.full)}"
    return None


def _is_due(world: SourceWorld, made_at: datetime) -> bool:
    """Return whether the interval of incrementals has passed."""
    return world.rhythm.slots.is_due(made_at, world.rhythm.incremental_every, world.now)


# --- decisions -------------------------------------------------------------------------------------


def _begin(world: SourceWorld, options: PlanOptions) -> Decision:
    """Decide where no manifest can be read."""
    if world.lost:
        return _full(world, Reason.MANIFEST_MISSING, world.lost)
    if world.top is None:
        return _full(world, Reason.FIRST, "there is no backup yet")
    detail = f"no manifest of {world.name} in the bucket can be read, so nobody can say whose they are"
    if options.adopt:
        return _full(world, Reason.CHAIN_BROKEN, detail)
    hint = "look with `b2s verify`; --adopt goes on with a full, nothing is overwritten"
    return _refuse(world, Reason.CHAIN_BROKEN, detail, hint)


def _stranger_decision(world: SourceWorld, options: PlanOptions, head: BackupSummary, reason: Reason) -> Decision:
    """Refuse to write under somebody else's name, or take it over when asked to."""
    if reason is Reason.FOREIGN_HOST:
        detail = f"backup {head.sequence} of {world.name} was made by another host, {head.host.name}"
    else:
        detail = f"backup {head.sequence} of {world.name} is of another subvolume, UUID {head.source.uuid}"
    if options.adopt:
        return _full(world, reason, f"{detail}; taken over as asked")
    hint = "--adopt goes on under this name with a full; or choose another source name or prefix"
    return _refuse(world, reason, detail, hint)


def _refuse(world: SourceWorld, reason: Reason, detail: str, hint: str | None) -> Decision:
    return Decision(world.name, ActionKind.REFUSE, reason, detail, hint=hint)


def _skip(
    world: SourceWorld, reason: Reason, detail: str, made_at: datetime, *, needs_chunks: bool = False
) -> Decision:
    chain = world.chain
    full_made_at = chain.full.created_at if chain and chain.full else None
    next_due, next_full_due = next_dues(world.rhythm, made_at, full_made_at, world.now)
    return Decision(world.name, ActionKind.SKIP, reason, detail, next_due, next_full_due, needs_chunks=needs_chunks)


def _full(world: SourceWorld, reason: Reason, detail: str) -> Decision:
    next_due, next_full_due = next_dues(world.rhythm, world.now, world.now, world.now)
    return Decision(
        world.name,
        ActionKind.FULL,
        reason,
        detail,
        next_due,
        next_full_due,
        sequence=_next_sequence(world),
        previous=world.top,
    )


def _incremental(
    world: SourceWorld, chain: HeadChain, snapshot: SubvolumeFacts, reason: Reason, detail: str
) -> Decision:
    full_made_at = chain.full.created_at if chain.full else None
    next_due, next_full_due = next_dues(world.rhythm, world.now, full_made_at, world.now)
    return Decision(
        world.name,
        ActionKind.INCREMENTAL,
        reason,
        detail,
        next_due,
        next_full_due,
        sequence=_next_sequence(world),
        previous=world.top,
        send_parent=chain.head.as_send_parent(),
        send_parent_snapshot=snapshot,
        needs_chunks=not chain.checked,
    )


def _resume(world: SourceWorld, unfinished: Unfinished) -> Decision:
    """Go on with the snapshot as it is now: renamed perhaps, or deduplicated, which gives it another `ctransid`.

    Both stand in the stream's first command. What is stored is known by its hash, so whatever differs is sent again.
    """
    intent = unfinished.progress.intent
    if unfinished.snapshot is not None:
        found = unfinished.snapshot
        name = found.path.rpartition("/")[2]
        intent = replace(intent, snapshot=replace(intent.snapshot, name=name, path=found.path, ctransid=found.ctransid))
    full_made_at = intent.created_at
    if intent.kind is Kind.INCREMENTAL and world.chain is not None and world.chain.full is not None:
        full_made_at = world.chain.full.created_at
    next_due, next_full_due = next_dues(world.rhythm, intent.created_at, full_made_at, world.now)
    return Decision(
        world.name,
        ActionKind.RESUME,
        Reason.INTERRUPTED,
        f"{intent.backup_id} was interrupted after {format_bytes(unfinished.progress.stored_bytes)}",
        next_due,
        next_full_due,
        sequence=intent.sequence,
        previous=intent.previous,
        send_parent=intent.send_parent,
        send_parent_snapshot=unfinished.send_parent,
        resume=replace(unfinished.progress, intent=intent),
        needs_chunks=intent.send_parent is not None and world.chain is not None and not world.chain.checked,
    )


def next_dues(
    rhythm: Rhythm, made_at: datetime, full_made_at: datetime | None, now: datetime
) -> tuple[datetime, datetime | None]:
    """Return when the next backup and the next full are due (UTC); a full that comes first is both."""
    due = rhythm.slots.next_due(made_at, rhythm.incremental_every, now)
    if full_made_at is None:
        return due, None
    full_due = rhythm.slots.next_due(full_made_at, rhythm.full_every, now)
    return min(due, full_due), full_due


def _next_sequence(world: SourceWorld) -> int:
    return world.top.sequence + 1 if world.top else 1


def _naming(backup: BackupSummary) -> str:
    return f"number {backup.sequence} of {backup.created_at:%Y-%m-%d %H:%M} UTC"
