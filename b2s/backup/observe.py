"""Look at one source, here and in the bucket, and decide what to do with it."""

from __future__ import annotations

from dataclasses import replace

from b2s.adapters import btrfs, zones
from b2s.backup.manifests import ManifestCache, Manifests
from b2s.backup.run_parts import RunParts
from b2s.core.layout import Layout
from b2s.core.model import ActionKind, Reason, SubvolumeFacts
from b2s.core.plan import Decision, PlanOptions, decide
from b2s.core.schedule import Slots
from b2s.core.settings import ScheduleSettings, SourceSettings
from b2s.core.world import HeadChain, Rhythm, SourceWorld, Unfinished
from b2s.errors import BtrfsError, NotASubvolume, SourceMissing

ANCESTORS_MAX = 16


class Observer:
    """Builds the world of one source after the other, from as little as decides."""

    def __init__(self, parts: RunParts) -> None:
        self._parts = parts
        self.chain: HeadChain | None = None  # of the source looked at last, for monitoring

    def decide(self, source: SourceSettings, options: PlanOptions) -> Decision:
        """Return what to do with the source now.

        What this host knows may already say that nothing is due, or that the source is not there; anything else
        asks the bucket: one LIST and the manifests not yet seen.

        Raises:
            StoreError: S3 could not be asked; that is a failure, never a reason for a full.
            BtrfsError: The kernel does not answer.
        """
        store = self._parts.store
        cache = ManifestCache(self._parts.state, store, source.name)
        world = self._here(source)
        known = cache.head_chain()
        if known is not None or world.source is None:
            decision = decide(self._with_chain(world, known), options)
            if decision.reason in (Reason.NOT_DUE, Reason.SOURCE_MISSING):
                return decision
        manifests = Manifests(self._parts.bucket, Layout(self._parts.settings.s3.prefix, source.name), cache)
        manifests.list()
        world = self._with_bucket(world, manifests)
        decision = decide(world, options)
        if decision.needs_chunks and world.chain is not None:
            world = replace(world, chain=manifests.with_chunks(world.chain))
            decision = decide(world, options)
        self._remember(cache, manifests, world, decision)
        return decision

    def _here(self, source: SourceSettings) -> SourceWorld:
        """Look at this host alone."""
        settings = self._parts.settings
        subvolume, problem, hint = _look_at(source.path)
        world = SourceWorld(
            name=source.name,
            now=self._parts.clock.now(),
            rhythm=rhythm_of(settings.schedule_of(source)),
            host_id=self._parts.host.id,
            source=subvolume,
            source_problem=problem,
            source_hint=hint,
        )
        return replace(world, unfinished=self._unfinished(source))

    def _unfinished(self, source: SourceSettings) -> Unfinished | None:
        """Return what the journal knows of a backup to this store, and what is left of its snapshots."""
        for progress in self._parts.state.unfinished():
            intent = progress.intent
            if intent.source.name != source.name or intent.store != self._parts.store:
                continue
            places = (source.path, self._parts.settings.snapshots_of(source).base_dir)
            snapshots = _find(places, intent.snapshot.uuid)
            parents = _find(places, intent.send_parent.snapshot_uuid) if intent.send_parent else ()
            return Unfinished(
                progress,
                snapshot=next((found for found in snapshots if found.uuid == intent.snapshot.uuid), None),
                send_parent=next((found for found in parents if found.read_only), None),
            )
        return None

    def _with_chain(self, world: SourceWorld, chain: HeadChain | None) -> SourceWorld:
        """Add the newest chain, and what of it is here."""
        self.chain = chain
        if chain is None:
            return world
        head = chain.head
        unchanged_at = self._parts.state.unchanged_at(self._parts.store, world.name, head.sequence)
        world = replace(world, chain=chain, top=head.link, unchanged_at=unchanged_at)
        if world.source is None:
            return world
        candidates = tuple(btrfs.find_by_uuid(world.source.path, head.snapshot.uuid))
        ancestors = () if world.source.uuid == head.source.uuid else _ancestors(world.source)
        return replace(world, candidates=candidates, ancestors=ancestors)

    def _with_bucket(self, world: SourceWorld, manifests: Manifests) -> SourceWorld:
        """Add what the bucket says."""
        unfinished = world.unfinished
        if unfinished is not None:
            unfinished = replace(unfinished, holder=manifests.holder(unfinished.progress.intent.sequence))
        world = self._with_chain(world, manifests.head_chain())
        return replace(world, top=manifests.top(), lost=manifests.lost, unfinished=unfinished)

    def _remember(self, cache: ManifestCache, manifests: Manifests, world: SourceWorld, decision: Decision) -> None:
        """Note what a later run must know, where this is a run and not only a plan."""
        if self._parts.state.read_only:
            return
        if manifests.lost and decision.action is ActionKind.FULL:
            cache.forget()  # the full answers for it; or else every later run would make another
        if decision.reason is Reason.UNCHANGED and world.chain is not None:
            self._parts.state.record_unchanged(self._parts.store, world.name, world.chain.head.sequence, world.now)


def rhythm_of(schedule: ScheduleSettings) -> Rhythm:
    """Return a schedule with its zone looked up."""
    return Rhythm(
        Slots(schedule.run_at, zones.zone(schedule.timezone)),
        schedule.full_every,
        schedule.incremental_every,
        schedule.skip_unchanged,
        schedule.max_chain_length,
    )


def _look_at(path: str) -> tuple[SubvolumeFacts | None, str, str | None]:
    try:
        return btrfs.subvolume_facts(path), "", None
    except BtrfsError as error:
        return None, error.message, error.hint


def _find(places: tuple[str, ...], uuid: str) -> tuple[SubvolumeFacts, ...]:
    """Return the subvolumes with this uuid or received_uuid on the filesystem of the first place that is there."""
    for place in places:
        try:
            return tuple(btrfs.find_by_uuid(place, uuid))
        except (SourceMissing, NotASubvolume):
            continue
    return ()


def _ancestors(subvolume: SubvolumeFacts) -> tuple[str, ...]:
    """Return the UUIDs of what a subvolume was made from, as far as it is found here."""
    ancestors: list[str] = []
    parent = subvolume.parent_uuid
    while parent is not None and parent not in ancestors and len(ancestors) < ANCESTORS_MAX:
        ancestors.append(parent)
        found = btrfs.find_by_uuid(subvolume.path, parent)
        parent = found[0].parent_uuid if found and found[0].uuid == parent else None
    return tuple(ancestors)
