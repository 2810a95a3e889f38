"""Chains of manifests: resolved, grouped, and refused where they do not link up."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from b2s.core.chain import Broken, Stored, World, chains, find, link_problems, resolve
from b2s.core.layout import new_backup_id
from b2s.core.limits import CHAIN_LENGTH_MAX
from b2s.core.manifest import Manifest, ManifestLink, SendParent
from b2s.core.model import Kind
from b2s.errors import BackupNotFound, ChainBroken, ManifestDamaged, ManifestMissing
from tests.format import sample

START = datetime(2026, 1, 1, tzinfo=UTC)
FULL = sample.full()


def sha256(sequence: int) -> str:
    """Return the made-up hash of a manifest."""
    return f"{sequence:064x}"


def history(*parents: int | None, clock: tuple[int, ...] | None = None) -> dict[int, Stored | Broken]:
    """Return manifests 1, 2, ... with these send parents (None for a full), made on these days."""
    world: dict[int, Stored | Broken] = {}
    for sequence, parent in enumerate(parents, start=1):
        created_at = START + timedelta(days=clock[sequence - 1] if clock else sequence)
        kind = Kind.FULL if parent is None else Kind.INCREMENTAL
        link = None
        if parent is not None:
            older = manifest(world, parent)
            link = SendParent(older.backup_id, parent, sha256(parent), older.snapshot.uuid)
        made = replace(
            FULL,
            backup_id=new_backup_id(created_at, kind, f"{sequence:08x}"),
            sequence=sequence,
            previous=ManifestLink(sequence - 1, sha256(sequence - 1)) if sequence > 1 else None,
            kind=kind,
            created_at=created_at,
            snapshot=replace(FULL.snapshot, uuid=f"00000000-0000-0000-0000-{sequence:012x}"),
            send_parent=link,
        )
        world[sequence] = Stored(made, sha256(sequence), 1000)
    return world


def manifest(world: World, sequence: int) -> Manifest:
    """Return one readable manifest."""
    entry = world[sequence]
    assert isinstance(entry, Stored)
    return entry.manifest


def damaged(sequence: int) -> Broken:
    """Return a manifest that cannot be read."""
    return Broken(sequence, ManifestDamaged(f"manifest {sequence} is garbage"), "ff" * 32)


def sequences(backups: tuple[Stored, ...]) -> list[int]:
    """Return the sequences of some backups."""
    return [stored.manifest.sequence for stored in backups]


def test_resolve_oldest_first() -> None:
    """A backup resolves to its full, what lies between, and itself; side branches and other chains stay out."""
    world = history(None, 1, 2, 2, None, 5, 4)
    assert sequences(resolve(world, 1)) == [1]
    assert sequences(resolve(world, 3)) == [1, 2, 3]
    assert sequences(resolve(world, 7)) == [1, 2, 4, 7]
    assert sequences(resolve(world, 6)) == [5, 6]


def test_resolve_with_something_missing() -> None:
    """A missing or unreadable member is named; a chain that does not need it resolves."""
    world = history(None, 1, 2, None)
    del world[2]
    with pytest.raises(ManifestMissing, match="manifest 2, the send parent of manifest 3"):
        resolve(world, 3)
    with pytest.raises(ManifestMissing):
        resolve(world, 99)
    world[2] = damaged(2)
    with pytest.raises(ManifestDamaged):
        resolve(world, 3)
    assert sequences(resolve(world, 4)) == [4]


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("manifest_sha256", "00" * 32, "SHA-256"),
        ("backup_id", "20260101T000000Z-full-ffffffff", "backup id"),
        ("snapshot_uuid", "ffffffff-0000-0000-0000-000000000000", "UUID"),
        ("sequence", 1, "another SHA-256"),
    ],
)
def test_resolve_compares_the_whole_link(field: str, value: object, match: str) -> None:
    """A send parent that differs in anything the link says is not the send parent."""
    world = history(None, 1, 2)
    last = manifest(world, 3)
    assert last.send_parent is not None
    world[3] = Stored(replace(last, send_parent=replace(last.send_parent, **{field: value})), sha256(3), 1000)
    with pytest.raises(ChainBroken, match=match):
        resolve(world, 3)


@pytest.mark.parametrize("target", [2, 3])
def test_cycles_end(target: int) -> None:
    """A send parent that is not older is refused, even if a manifest got past the decoder."""
    world = history(None, 1, 2)
    link = SendParent(manifest(world, target).backup_id, target, sha256(target), manifest(world, target).snapshot.uuid)
    world[2] = Stored(replace(manifest(world, 2), send_parent=link), sha256(2), 1000)
    with pytest.raises(ChainBroken, match="not older"):
        resolve(world, 3)
    assert [chain.whole for chain in chains(world)] == [True, False]


def test_endless_chains_end() -> None:
    """A chain longer than the bound is refused; one of exactly the bound is not."""
    world = history(None, *range(1, CHAIN_LENGTH_MAX + 1))
    assert len(resolve(world, CHAIN_LENGTH_MAX)) == CHAIN_LENGTH_MAX
    with pytest.raises(ChainBroken, match="longer"):
        resolve(world, CHAIN_LENGTH_MAX + 1)


def test_chains_with_branches() -> None:
    """Everything that hangs from a full is its chain, oldest first, in whatever order it was made."""
    found = chains(history(None, 1, None, 2, 1, 3))
    assert [sequences(chain.backups) for chain in found] == [[1, 2, 4, 5], [3, 6]]
    assert all(chain.whole for chain in found)
    assert chains({}) == ()


def test_chains_without_their_full() -> None:
    """What hangs from something missing is a chain of its own that says why it is not whole."""
    world = history(None, 1, 2, 3)
    del world[2]
    whole, torn = chains(world)
    assert (sequences(whole.backups), whole.whole) == ([1], True)
    assert (sequences(torn.backups), torn.whole) == ([3, 4], False)
    assert isinstance(torn.problem, ManifestMissing)
    world[2] = damaged(2)
    assert isinstance(chains(world)[1].problem, ManifestDamaged)


def test_find() -> None:
    """A backup is found by its id, unless nobody or more than one has it."""
    world = history(None, 1)
    backup_id = manifest(world, 2).backup_id
    assert find(world, backup_id).manifest.sequence == 2
    with pytest.raises(BackupNotFound):
        find(world, "nonsense\n")
    world[3] = Stored(replace(manifest(world, 2), sequence=3), sha256(3), 1000)
    with pytest.raises(ChainBroken, match="2, 3"):
        find(world, backup_id)


def test_hash_chain_is_whole() -> None:
    """An untouched history has no link problem, also with numbers left out by a lost race."""
    world = history(None, 1, 2)
    assert link_problems(world) == ()
    jumped = replace(manifest(world, 3), sequence=7, previous=ManifestLink(2, sha256(2)))
    assert link_problems({1: world[1], 2: world[2], 7: Stored(jumped, sha256(7), 1000)}) == ()


def test_hash_chain_shows_what_was_done() -> None:
    """Removal, replacement, insertion and a doubled backup id are each seen."""
    removed = history(None, 1, 2)
    del removed[2]
    (problem,) = link_problems(removed)
    assert isinstance(problem, ManifestMissing)
    assert problem.context["sequence"] == 2

    replaced = history(None, 1, 2)
    replaced[2] = Stored(manifest(replaced, 2), "ee" * 32, 1000)
    (problem,) = link_problems(replaced)
    assert "manifest 3" in problem.message

    unreadable = history(None, 1, 2)
    unreadable[2] = damaged(2)
    assert len(link_problems(unreadable)) == 1

    inserted = history(None, 1, 2)
    inserted[3] = Stored(replace(manifest(inserted, 3), previous=ManifestLink(1, sha256(1))), sha256(3), 1000)
    (problem,) = link_problems(inserted)
    assert "put in" in problem.message

    doubled = history(None, None)
    doubled[2] = Stored(replace(manifest(doubled, 2), backup_id=manifest(doubled, 1).backup_id), sha256(2), 1000)
    (problem,) = link_problems(doubled)
    assert "already" in problem.message
