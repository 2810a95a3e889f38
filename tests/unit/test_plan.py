"""The decision table: every reason, and which of two wins."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from b2s.core.manifest import ManifestLink
from b2s.core.model import ActionKind, Kind, Reason
from b2s.core.plan import Decision, PlanOptions, decide, next_dues
from b2s.core.world import BackupSummary, HeadChain, Health, SourceWorld
from tests.unit.planning import (
    BERLIN,
    DAY,
    HOST,
    NOW,
    OTHER_HOST,
    OTHER_UUID,
    SOURCE_UUID,
    backup,
    interrupted,
    rhythm,
    snapshot_of,
    source,
    subvolume,
    weekly_chain,
    world,
)

HOUR = timedelta(hours=1)
LAST_WEEK = datetime(2026, 6, 7, 2, 9, tzinfo=BERLIN)  # seven slots before NOW
YESTERDAY = datetime(2026, 6, 13, 2, 9, tzinfo=BERLIN)
BEGUN_AT = datetime(2026, 6, 14, 2, 5, tzinfo=BERLIN)


def plan(observed: SourceWorld, **options: bool) -> Decision:
    """Decide with these command-line options."""
    return decide(observed, PlanOptions(**options))


def outcome(observed: SourceWorld, **options: bool) -> tuple[str, str]:
    """Return action and reason in the words of the JSON output."""
    decision = plan(observed, **options)
    return decision.action.value, decision.reason.value


def due_world(**changes: Any) -> SourceWorld:
    """Return a world whose weekly incremental is due."""
    return world(weekly_chain(3, LAST_WEEK), **changes)


def fresh_world(**changes: Any) -> SourceWorld:
    """Return a world in which nothing is due."""
    return world(weekly_chain(3, YESTERDAY), **changes)


def head_of(observed: SourceWorld) -> BackupSummary:
    """Return the newest backup of a world that has one."""
    assert observed.chain is not None
    return observed.chain.head


def with_health(observed: SourceWorld, health: Health) -> SourceWorld:
    """Return the same world with a chain in that state."""
    assert observed.chain is not None
    return replace(observed, chain=replace(observed.chain, health=health, detail="that object"))


# --- due, or not -----------------------------------------------------------------------------------


def test_no_backup_yet_gives_the_first_full() -> None:
    """A source without any manifest begins with number 1, forced or not."""
    decision = plan(world())
    assert (decision.action, decision.reason) == (ActionKind.FULL, Reason.FIRST)
    assert (decision.sequence, decision.previous, decision.send_parent_path) == (1, None, None)
    assert decision.kind is Kind.FULL
    assert outcome(world(), full=True) == ("full", "first")


def test_a_due_incremental_hangs_from_the_newest_backup() -> None:
    """The decision carries all a run needs: number, links and the snapshot for `btrfs send -p`."""
    observed = due_world()
    head = head_of(observed)
    decision = plan(observed)
    assert (decision.action, decision.reason) == (ActionKind.INCREMENTAL, Reason.INTERVAL)
    assert (decision.sequence, decision.previous) == (4, ManifestLink(3, head.manifest_sha256))
    assert decision.send_parent == head.as_send_parent()
    assert decision.send_parent_path == head.snapshot.path
    assert decision.kind is Kind.INCREMENTAL
    assert decision.makes_backup
    assert not decision.needs_chunks


def test_an_incremental_asks_for_its_chunks_to_be_looked_at() -> None:
    """As long as nobody looked at the chunks the decision says so; the answer does not change otherwise."""
    observed = with_health(due_world(), Health.UNCHECKED)
    assert plan(observed) == replace(plan(due_world()), needs_chunks=True)


def test_a_backup_not_old_enough_is_skipped_until_its_slot() -> None:
    """Nothing due: skip, and say when."""
    decision = plan(fresh_world())
    assert (decision.action, decision.reason) == (ActionKind.SKIP, Reason.NOT_DUE)
    assert decision.next_due == datetime(2026, 6, 20, 2, 0, tzinfo=BERLIN)
    assert decision.kind is None
    assert not decision.makes_backup


def test_once_makes_a_backup_that_is_not_due() -> None:
    """--once backs up although nothing is due or changed."""
    observed = fresh_world()
    unchanged = replace(observed, source=source(ctransid=head_of(observed).snapshot.ctransid))
    assert outcome(observed, once=True) == ("incremental", "forced")
    assert outcome(unchanged, once=True) == ("incremental", "forced")
    assert outcome(due_world(), once=True) == ("incremental", "interval")


def test_full_forces_a_full() -> None:
    """--full makes a full whether anything is due or not."""
    assert outcome(fresh_world(), full=True) == ("full", "forced")


def test_a_full_is_due_after_its_interval() -> None:
    """180 days after the full's slot a full is made, although the last incremental is from yesterday."""
    full = backup(1, datetime(2025, 12, 16, 2, 40, tzinfo=BERLIN))  # 180 slots before NOW
    observed = world([full, backup(2, YESTERDAY, full)])
    assert outcome(observed) == ("full", "full_interval")
    decision = plan(observed)
    assert decision.next_due == datetime(2026, 6, 21, 2, 0, tzinfo=BERLIN)
    assert decision.next_full_due == datetime(2026, 12, 11, 2, 0, tzinfo=BERLIN)
    younger = replace(full, created_at=datetime(2025, 12, 17, 2, 40, tzinfo=BERLIN))
    assert outcome(world([younger, backup(2, YESTERDAY, younger)])) == ("skip", "not_due")


def test_next_due_is_the_full_where_it_comes_first() -> None:
    """A full that is due before the next incremental is what comes next."""
    full = backup(1, datetime(2025, 12, 18, 2, 40, tzinfo=BERLIN))
    decision = plan(world([full, backup(2, YESTERDAY, full)]))
    assert decision.next_due == decision.next_full_due == datetime(2026, 6, 16, 2, 0, tzinfo=BERLIN)


def test_a_chain_at_its_length_gives_a_full_when_something_is_due() -> None:
    """max_chain_length counts the full; it makes nothing due by itself."""
    assert outcome(due_world(rhythm=rhythm(max_chain_length=3))) == ("full", "chain_length")
    assert outcome(due_world(rhythm=rhythm(max_chain_length=4))) == ("incremental", "interval")
    assert outcome(fresh_world(rhythm=rhythm(max_chain_length=3))) == ("skip", "not_due")


# --- unchanged -------------------------------------------------------------------------------------


def unchanged_world(**changes: Any) -> SourceWorld:
    """Return a world in which an incremental is due and nothing was written."""
    observed = due_world()
    return replace(observed, source=source(ctransid=head_of(observed).snapshot.ctransid), **changes)


def test_nothing_written_is_skipped_until_the_next_slot() -> None:
    """No empty incremental; the next look is a week later, as after a backup."""
    decision = plan(unchanged_world())
    assert (decision.action, decision.reason) == (ActionKind.SKIP, Reason.UNCHANGED)
    assert decision.next_due == datetime(2026, 6, 21, 2, 0, tzinfo=BERLIN)


def test_one_deduplication_of_source_and_snapshot_hides_no_change() -> None:
    """It gives both the ctransid of its transaction, whatever was written to the source before."""
    observed = unchanged_world()
    touched = snapshot_of(head_of(observed), otransid=head_of(observed).snapshot.ctransid - 1)
    assert outcome(replace(observed, candidates=(touched,))) == ("incremental", "interval")


def test_skipping_may_be_switched_off() -> None:
    """skip_unchanged: false makes the empty incremental."""
    assert outcome(unchanged_world(rhythm=rhythm(skip_unchanged=False))) == ("incremental", "interval")


def test_unchanged_never_lets_a_full_slip() -> None:
    """A full that is due for any reason is made of unchanged data too."""
    head = head_of(unchanged_world())
    assert outcome(unchanged_world(rhythm=rhythm(full_every=20 * DAY))) == ("full", "full_interval")
    assert outcome(unchanged_world(rhythm=rhythm(max_chain_length=2))) == ("full", "chain_length")
    assert outcome(unchanged_world(candidates=())) == ("full", "send_parent_missing")
    assert outcome(unchanged_world(candidates=(snapshot_of(head, read_only=False),)))[0] == "full"


def test_unchanged_counts_only_on_a_chain_that_is_whole() -> None:
    """Whether the last backup is still there is asked before it is called up to date."""
    assert plan(with_health(unchanged_world(), Health.UNCHECKED)).needs_chunks
    assert outcome(with_health(unchanged_world(), Health.CHUNK_MISSING)) == ("full", "chunk_missing")


def test_a_recorded_skip_counts_as_the_slots_backup() -> None:
    """Data written later in a slot that was skipped waits for the next slot."""
    skipped_at = NOW - timedelta(minutes=2)
    decision = plan(due_world(unchanged_at=skipped_at))
    assert (decision.action, decision.reason) == (ActionKind.SKIP, Reason.NOT_DUE)
    assert decision.next_due == datetime(2026, 6, 21, 2, 0, tzinfo=BERLIN)
    assert outcome(due_world(unchanged_at=skipped_at - 7 * DAY)) == ("incremental", "interval")


def test_equal_transactions_of_strangers_mean_nothing() -> None:
    """The same ctransid on a subvolume that is no relative of the send parent is a coincidence."""
    observed = unchanged_world()
    lonely = snapshot_of(head_of(observed), parent_uuid=None)
    assert outcome(replace(observed, candidates=(lonely,))) == ("incremental", "interval")


# --- the send parent -------------------------------------------------------------------------------


def test_a_deleted_send_parent_gives_a_full() -> None:
    """Without the snapshot of the last backup there is nothing to send against."""
    decision = plan(due_world(candidates=()))
    assert (decision.action, decision.reason) == (ActionKind.FULL, Reason.SEND_PARENT_MISSING)
    assert "not here" in decision.detail


def test_a_renamed_send_parent_is_still_the_send_parent() -> None:
    """The UUID counts, not the name."""
    observed = due_world()
    moved = snapshot_of(head_of(observed), path="/srv/elsewhere")
    assert plan(replace(observed, candidates=(moved,))).send_parent_path == "/srv/elsewhere"


def test_another_subvolume_under_its_name_is_not_the_send_parent() -> None:
    """A replacement has another UUID, and is not taken."""
    observed = due_world()
    head = head_of(observed)
    other = subvolume(OTHER_UUID, head.snapshot.path, read_only=True, ctransid=head.snapshot.ctransid)
    assert outcome(replace(observed, candidates=(other,))) == ("full", "send_parent_missing")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"read_only": False}, "send_parent_writable"),
        ({"ctransid": 4711}, "send_parent_changed"),
        ({"filesystem_uuid": "f0000000-0000-4000-8000-000000000009"}, "send_parent_missing"),
    ],
)
def test_a_doubtful_send_parent_gives_a_full(change: dict[str, Any], reason: str) -> None:
    """Writable, changed since, or on another filesystem: a full, each with its reason."""
    observed = due_world()
    doubtful = snapshot_of(head_of(observed), **change)
    assert outcome(replace(observed, candidates=(doubtful,))) == ("full", reason)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ("incremental", "interval")),
        ({"ctransid": 32}, ("incremental", "interval")),
        ({"stransid": 4711}, ("full", "send_parent_changed")),
        ({"read_only": False}, ("full", "send_parent_writable")),
    ],
)
def test_a_received_send_parent_is_judged_by_how_it_was_received(
    change: dict[str, Any], expected: tuple[str, str]
) -> None:
    """A received copy must be read-only and have come from the right ctransid; its own ctransid says nothing."""
    observed = due_world()
    wanted = head_of(observed).snapshot
    facts = {"received_uuid": wanted.uuid, "stransid": wanted.ctransid, "ctransid": 31, "otransid": 32}
    received = subvolume(OTHER_UUID, "/srv/received", **{"read_only": True, **facts, **change})
    assert outcome(replace(observed, candidates=(received,))) == expected


def test_a_good_copy_is_taken_where_the_snapshot_itself_is_doubtful() -> None:
    """One trustworthy candidate is enough."""
    observed = due_world()
    wanted = head_of(observed).snapshot
    facts = {"received_uuid": wanted.uuid, "stransid": wanted.ctransid, "ctransid": 31, "otransid": 32}
    received = subvolume(OTHER_UUID, "/srv/received", read_only=True, **facts)
    edited = snapshot_of(head_of(observed), ctransid=4711)
    assert plan(replace(observed, candidates=(edited, received))).send_parent_path == "/srv/received"


# --- the chain in the bucket -----------------------------------------------------------------------


@pytest.mark.parametrize("health", [Health.MANIFEST_MISSING, Health.CHUNK_MISSING, Health.CHAIN_BROKEN])
def test_a_chain_that_is_not_whole_gives_a_full_at_once(health: Health) -> None:
    """No usable chain: a full, due or not, with the reason and the object's name."""
    for observed in (due_world(), fresh_world()):
        decision = plan(with_health(observed, health))
        assert (decision.action, decision.reason.value) == (ActionKind.FULL, health.value)
        assert "that object" in decision.detail


def test_a_chain_without_a_full_is_broken() -> None:
    """Incrementals that lead nowhere are no base for another."""
    chain = weekly_chain(3, YESTERDAY)
    assert outcome(world(chain[1:])) == ("full", "chain_broken")


def test_a_manifest_this_host_saw_committed_and_is_gone_gives_a_full() -> None:
    """A newest manifest that vanished from the bucket is noticed, with or without older ones left."""
    assert outcome(fresh_world(lost="manifest 4 is gone")) == ("full", "manifest_missing")
    decision = plan(world(lost="manifest 1 is gone"))
    assert (decision.action, decision.reason, decision.sequence) == (ActionKind.FULL, Reason.MANIFEST_MISSING, 1)


def test_nothing_readable_is_refused_until_adopted() -> None:
    """Manifests nobody can read might be anybody's; --adopt goes on above them."""
    observed = world(top=ManifestLink(9, "9" * 64))
    refused = plan(observed)
    assert (refused.action, refused.reason) == (ActionKind.REFUSE, Reason.CHAIN_BROKEN)
    assert "--adopt" in str(refused.hint)
    adopted = plan(observed, adopt=True)
    assert (adopted.action, adopted.reason, adopted.sequence) == (ActionKind.FULL, Reason.CHAIN_BROKEN, 10)


# --- whose chain -----------------------------------------------------------------------------------


def foreign(observed: SourceWorld, **changes: Any) -> SourceWorld:
    """Return the same world seen from another host that has nothing of it."""
    other = source(uuid=OTHER_UUID)
    return replace(observed, **{"host_id": OTHER_HOST.id, "source": other, "candidates": (), **changes})


@pytest.mark.parametrize("observed", [fresh_world(), due_world()])
def test_another_hosts_name_is_refused(observed: SourceWorld) -> None:
    """Two hosts under one source name: refused with a hint, due or not, however much is forced."""
    for options in ({}, {"once": True}, {"full": True}):
        decision = plan(foreign(observed), **options)
        assert (decision.action, decision.reason) == (ActionKind.REFUSE, Reason.FOREIGN_HOST)
        assert "--adopt" in str(decision.hint)
        assert HOST.name in decision.detail


def test_adopt_goes_on_under_the_name_with_a_full() -> None:
    """--adopt appends a full to the same sequence of manifests, due or not."""
    observed = foreign(fresh_world())
    decision = plan(observed, adopt=True)
    assert (decision.action, decision.reason) == (ActionKind.FULL, Reason.FOREIGN_HOST)
    assert (decision.sequence, decision.previous) == (4, observed.top)


def test_adopt_changes_nothing_where_the_chain_is_ours() -> None:
    """--adopt left in a crontab does no harm."""
    assert outcome(fresh_world(), adopt=True) == ("skip", "not_due")
    assert outcome(due_world(), adopt=True) == ("incremental", "interval")


def test_another_subvolume_at_the_path_is_refused() -> None:
    """A replaced source is refused, also while the old one's snapshots still lie here."""
    observed = due_world(source=source(uuid=OTHER_UUID))
    assert outcome(observed) == ("refuse", "source_replaced")
    assert outcome(replace(observed, candidates=())) == ("refuse", "source_replaced")
    assert outcome(observed, adopt=True) == ("full", "source_replaced")


def test_a_reinstalled_host_with_its_old_disk_goes_on() -> None:
    """Another host id, the same subvolume and snapshot: the chain continues."""
    assert outcome(due_world(host_id=OTHER_HOST.id)) == ("incremental", "interval")


def test_a_reinstalled_host_without_the_snapshot_is_refused() -> None:
    """Another host id and no snapshot: nobody can tell a copy of the disk from the disk."""
    assert outcome(due_world(host_id=OTHER_HOST.id, candidates=())) == ("refuse", "foreign_host")


def test_the_same_source_without_the_snapshot_gets_a_full() -> None:
    """Same host, same subvolume: a full under the same name, no refusal."""
    assert outcome(due_world(candidates=())) == ("full", "send_parent_missing")


def test_a_restored_source_continues_its_chain_on_any_host() -> None:
    """A writable snapshot of the received head is the same source, wherever it was restored."""
    observed = due_world()
    wanted = head_of(observed).snapshot
    facts = {"received_uuid": wanted.uuid, "stransid": wanted.ctransid, "ctransid": 31, "otransid": 32}
    received = subvolume(OTHER_UUID, "/srv/.b2s-received/data/x", read_only=True, **facts)
    restored = source(uuid="50000000-0000-4000-8000-000000000003", parent_uuid=OTHER_UUID)
    observed = foreign(observed, source=restored, candidates=(received,), ancestors=(OTHER_UUID,))
    decision = plan(observed)
    assert (decision.action, decision.reason) == (ActionKind.INCREMENTAL, Reason.INTERVAL)
    assert decision.send_parent_path == "/srv/.b2s-received/data/x"
    same_content = replace(restored, ctransid=received.ctransid)
    assert outcome(replace(observed, source=same_content)) == ("skip", "unchanged")


def test_a_source_rolled_back_to_an_older_snapshot_continues() -> None:
    """A writable snapshot of an older snapshot of the source is still that source's line."""
    older = "70000000-0000-4000-8000-00000000abcd"
    rolled_back = source(uuid=OTHER_UUID, parent_uuid=older)
    assert outcome(due_world(source=rolled_back, ancestors=(older, SOURCE_UUID))) == ("incremental", "interval")


# --- the source is not there -----------------------------------------------------------------------


def test_a_missing_source_is_refused() -> None:
    """A path that is gone is a failure with its own reason, forced or not."""
    observed = fresh_world(source=None, source_problem="/srv/data does not exist", source_hint="is it mounted?")
    decision = plan(observed)
    assert (decision.action, decision.reason) == (ActionKind.REFUSE, Reason.SOURCE_MISSING)
    assert (decision.detail, decision.hint) == ("/srv/data does not exist", "is it mounted?")
    assert outcome(replace(world(), source=None), full=True) == ("refuse", "source_missing")


# --- interrupted -----------------------------------------------------------------------------------


def interrupted_incremental(observed: SourceWorld, **changes: Any) -> SourceWorld:
    """Return the world with an interrupted incremental on top of its head."""
    head = head_of(observed)
    return replace(observed, unfinished=interrupted(backup(4, BEGUN_AT, head), head, **changes))


def test_an_interrupted_backup_is_always_due() -> None:
    """Whatever the schedule says, it is gone on with: same number, same links, same send parent."""
    for options in ({}, {"once": True}, {"full": True}):
        observed = interrupted_incremental(fresh_world())
        decision = plan(observed, **options)
        assert (decision.action, decision.reason) == (ActionKind.RESUME, Reason.INTERRUPTED)
        assert observed.unfinished is not None
        assert decision.resume == observed.unfinished.progress
        assert (decision.sequence, decision.kind) == (4, Kind.INCREMENTAL)
        assert decision.send_parent_path == head_of(observed).snapshot.path
        assert decision.next_due == datetime(2026, 6, 21, 2, 0, tzinfo=BERLIN)


def test_an_interrupted_first_full_is_gone_on_with() -> None:
    """A full needs no chain to be resumed."""
    decision = plan(world(unfinished=interrupted(backup(1, BEGUN_AT))))
    assert (decision.action, decision.kind, decision.needs_chunks) == (ActionKind.RESUME, Kind.FULL, False)
    assert decision.next_full_due == datetime(2026, 12, 11, 2, 0, tzinfo=BERLIN)


def test_an_interrupted_backup_is_finished_while_its_source_is_away() -> None:
    """Its snapshot is all it needs; the missing source is told once it is planned again."""
    assert outcome(replace(interrupted_incremental(fresh_world()), source=None)) == ("resume", "interrupted")


def test_resuming_an_incremental_asks_for_the_chunks_of_its_chain() -> None:
    """An incremental on a chain that lost a chunk would be worthless."""
    observed = interrupted_incremental(fresh_world())
    assert plan(with_health(observed, Health.UNCHECKED)).needs_chunks
    decision = plan(with_health(observed, Health.CHUNK_MISSING))
    assert (decision.action, decision.reason) == (ActionKind.FULL, Reason.CHUNK_MISSING)
    assert decision.abandoned is not None


def test_after_a_resume_once_is_satisfied() -> None:
    """The second look of the same run makes what is due, and a forced full unless one was just finished."""
    asked = PlanOptions(once=True, full=True, fresh=True, adopt=True)
    assert asked.after_resume(Kind.INCREMENTAL) == PlanOptions(full=True, adopt=True)
    assert asked.after_resume(Kind.FULL) == PlanOptions(adopt=True)


def test_a_backup_that_was_committed_before_the_kill_is_settled() -> None:
    """The bucket has its manifest: nothing is resumed, the journal is told, planning goes on."""
    observed = fresh_world()
    head = head_of(observed)
    observed = replace(observed, unfinished=interrupted(head, weekly_chain(2, YESTERDAY)[-1], holder=head.backup_id))
    decision = plan(observed)
    assert (decision.action, decision.reason) == (ActionKind.SKIP, Reason.NOT_DUE)
    assert observed.unfinished is not None
    assert decision.settled == observed.unfinished.progress
    assert decision.abandoned is None


def test_a_moved_and_deduplicated_snapshot_is_gone_on_with() -> None:
    """Its content is the same; where it lies and which ctransid it has now is what the manifest will say."""
    found = snapshot_of(backup(4, BEGUN_AT), ctransid=4711, path="/elsewhere/renamed")
    decision = plan(interrupted_incremental(fresh_world(), snapshot=found))
    assert decision.action is ActionKind.RESUME
    assert decision.resume is not None
    snapshot = decision.resume.intent.snapshot
    assert (snapshot.name, snapshot.path) == ("renamed", "/elsewhere/renamed")
    assert (snapshot.ctransid, snapshot.uuid) == (4711, found.uuid)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"holder": "20260614T000000Z-full-00000000"}, "was taken by"),
        ({"snapshot": None}, "snapshot is gone"),
        ({"snapshot": snapshot_of(backup(4, BEGUN_AT), read_only=False)}, "snapshot was made writable"),
        ({"send_parent": None}, "send parent is gone"),
        ({"send_parent": snapshot_of(backup(3, YESTERDAY), read_only=False)}, "send parent was changed"),
    ],
)
def test_what_cannot_be_resumed_is_made_anew(change: dict[str, Any], why: str) -> None:
    """The leftovers are given up and a new backup starts, due or not."""
    observed = interrupted_incremental(fresh_world(), **change)
    decision = plan(observed)
    assert (decision.action, decision.reason) == (ActionKind.INCREMENTAL, Reason.INTERRUPTED)
    assert observed.unfinished is not None
    assert decision.abandoned == observed.unfinished.progress
    assert why in decision.detail


def test_a_backup_begun_on_another_head_is_made_anew() -> None:
    """Somebody committed since it was begun: its number and links are no longer right."""
    observed = fresh_world()
    older = weekly_chain(2, LAST_WEEK)[-1]
    observed = replace(observed, unfinished=interrupted(backup(3, BEGUN_AT, older), older))
    decision = plan(observed)
    assert (decision.action, decision.sequence) == (ActionKind.INCREMENTAL, 4)
    assert "another one" in decision.detail


def test_an_incremental_whose_chain_cannot_be_read_is_not_resumed() -> None:
    """With no readable manifest there is no chain to go on with; what was begun is kept while refused."""
    head = weekly_chain(3, YESTERDAY)[-1]
    observed = world(top=head.link, unfinished=interrupted(backup(4, BEGUN_AT, head), head))
    refused = plan(observed)
    assert (refused.action, refused.abandoned) == (ActionKind.REFUSE, None)
    assert plan(observed, adopt=True).abandoned is not None


def test_a_lost_full_is_made_anew_as_a_full() -> None:
    """A forced full that cannot be resumed does not come back as an incremental."""
    observed = fresh_world()
    head = head_of(observed)
    forced_full = backup(4, BEGUN_AT, None, previous=head.link)
    observed = replace(observed, unfinished=interrupted(forced_full, head, snapshot=None))
    assert outcome(observed) == ("full", "interrupted")
    assert outcome(observed, fresh=True) == ("incremental", "interrupted")


def test_fresh_drops_what_was_interrupted_and_begins_anew() -> None:
    """--fresh gives up a backup that could be resumed, and makes one now."""
    observed = interrupted_incremental(fresh_world())
    decision = plan(observed, fresh=True)
    assert (decision.action, decision.reason) == (ActionKind.INCREMENTAL, Reason.INTERRUPTED)
    assert observed.unfinished is not None
    assert decision.abandoned == observed.unfinished.progress
    assert "as asked" in decision.detail


def test_fresh_without_anything_interrupted_changes_nothing() -> None:
    """--fresh by itself makes nothing due."""
    assert outcome(fresh_world(), fresh=True) == ("skip", "not_due")


def test_refused_sources_keep_what_was_begun() -> None:
    """A refusal gives nothing up."""
    observed = interrupted_incremental(fresh_world(), snapshot=None)
    decision = plan(replace(observed, source=None, source_problem="gone"))
    assert (decision.action, decision.abandoned) == (ActionKind.REFUSE, None)


def test_dues_without_a_full_name_no_full() -> None:
    """Where the chain leads to no full there is no date for the next one."""
    due, full_due = next_dues(rhythm(), YESTERDAY, None, NOW)
    assert (due, full_due) == (datetime(2026, 6, 20, 2, 0, tzinfo=BERLIN), None)


def test_the_chain_knows_its_ends() -> None:
    """Head and full of a chain are its last and first backup."""
    made = weekly_chain(3, YESTERDAY)
    chain = HeadChain.of(made, Health.UNCHECKED)
    assert (chain.head, chain.full, chain.length, chain.checked) == (made[2], made[0], 3, False)
    assert HeadChain.of(made[1:], Health.WHOLE).full is None
