"""Chains: how the manifests of a source hang together, and what follows when one is missing or does not fit.

Two links are recorded in every manifest. `previous` makes all manifests of a source one hash chain. `send_parent` makes
the chain that a restore follows; it may skip sequences, and two incrementals may have the same send parent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from b2s.core.limits import CHAIN_LENGTH_MAX
from b2s.core.manifest import Manifest
from b2s.errors import BackupNotFound, ChainBroken, ManifestMissing, StoredDataError


@dataclass(frozen=True, slots=True)
class Stored:
    """One manifest as it lies in the bucket."""

    manifest: Manifest
    sha256: str  # hex, of the stored bytes
    bytes: int  # of the manifest itself


@dataclass(frozen=True, slots=True)
class Broken:
    """A manifest key whose bytes cannot be trusted."""

    sequence: int
    error: StoredDataError
    sha256: str | None = None  # hex, of the stored bytes where they could be read

    @classmethod
    def of(cls, sequence: int, error: StoredDataError, sha256: str | None = None) -> Broken:
        """Note why a manifest is broken, and let go of what the error holds on to: the frames with all of its bytes."""
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return cls(sequence, error, sha256)


@dataclass(frozen=True, slots=True)
class Chain:
    """One full and everything that hangs from it; or, without a full, what hangs from something missing."""

    backups: tuple[Stored, ...]  # by sequence, so every send parent comes before what hangs from it
    problem: StoredDataError | None  # why its first backup cannot be restored

    @property
    def whole(self) -> bool:
        """Return whether every backup of the chain links up to a full."""
        return self.problem is None


World = Mapping[int, Stored | Broken]  # what one LIST of `manifests/` showed, by sequence


def find(world: World, backup_id: str) -> Stored:
    """Return the backup with this id.

    Raises:
        BackupNotFound: None has it.
        ChainBroken: Two manifests claim it.
    """
    found = [stored for stored in _stored(world) if stored.manifest.backup_id == backup_id]
    if not found:
        raise BackupNotFound(f"no readable manifest in the bucket has the backup id {backup_id[:80]!r}")
    if len(found) > 1:
        claims = ", ".join(str(stored.manifest.sequence) for stored in found[:10])
        raise ChainBroken(f"backup id {backup_id} is claimed by the manifests {claims}", backup_id=backup_id)
    return found[0]


def resolve(world: World, sequence: int) -> tuple[Stored, ...]:
    """Return the backups to restore for this one: the full first, then each incremental, the one asked for last.

    Raises:
        ManifestMissing: One of them is not in the bucket.
        ManifestDamaged: One of them cannot be read.
        ChainBroken: One does not link to the next, or there are too many.
    """
    current = _entry(world, sequence, f"manifest {sequence}")
    found = [current]
    while current.manifest.send_parent is not None:
        if len(found) == CHAIN_LENGTH_MAX:
            raise ChainBroken(f"the chain of manifest {sequence} is longer than {CHAIN_LENGTH_MAX}")
        current = _parent_of(world, current.manifest)
        found.append(current)
    return tuple(reversed(found))


def chains(world: World) -> tuple[Chain, ...]:
    """Return every backup in the chain it belongs to, chains in the order of their first backups.

    A backup whose send parent is missing, unreadable or another than it says begins a chain of its own that is not
    whole. Unreadable manifests belong to no chain; they are what `world` says of them.
    """
    roots: dict[int, int] = {}  # sequence -> sequence of the first backup of its chain
    members: dict[int, list[Stored]] = {}
    problems: dict[int, StoredDataError] = {}
    for stored in _stored(world):
        manifest = stored.manifest
        root = manifest.sequence
        if manifest.send_parent is not None:
            try:
                root = roots[_parent_of(world, manifest).manifest.sequence]
            except StoredDataError as error:
                problems[root] = error
        roots[manifest.sequence] = root
        members.setdefault(root, []).append(stored)
    return tuple(Chain(tuple(backups), problems.get(root)) for root, backups in members.items())


def link_problems(world: World) -> tuple[StoredDataError, ...]:
    """Return where the hash chain of `previous` is torn: something was removed, replaced or put in between.

    The newest manifests missing altogether cannot be seen this way: nothing names them yet.
    """
    problems: list[StoredDataError] = []
    owners: dict[str, int] = {}  # backup id -> sequence
    before: int | None = None
    for sequence in sorted(world):
        entry = world[sequence]
        if isinstance(entry, Stored):
            manifest = entry.manifest
            owner = owners.setdefault(manifest.backup_id, sequence)
            if owner != sequence:
                problems.append(_broken(manifest, f"backup id {manifest.backup_id} is manifest {owner}'s already"))
            link = manifest.previous
            if link is not None:
                target = world.get(link.sequence)
                if target is None:
                    message = f"manifest {link.sequence}, which manifest {sequence} follows, is not in the bucket"
                    problems.append(ManifestMissing(message, sequence=link.sequence))
                elif target.sha256 is not None and target.sha256 != link.manifest_sha256:
                    problems.append(_broken(manifest, f"manifest {link.sequence} is not the one it follows"))
                elif before is not None and before > link.sequence:
                    problems.append(_broken(manifest, f"manifest {before} was put in before it"))
        before = sequence
    return tuple(problems)


def _stored(world: World) -> list[Stored]:
    """Return the readable manifests, by sequence."""
    return [entry for _sequence, entry in sorted(world.items()) if isinstance(entry, Stored)]


def _entry(world: World, sequence: int, what: str) -> Stored:
    entry = world.get(sequence)
    if entry is None:
        raise ManifestMissing(f"{what} is not in the bucket", sequence=sequence)
    if isinstance(entry, Broken):
        raise entry.error
    return entry


def _parent_of(world: World, manifest: Manifest) -> Stored:
    """Return the backup that this incremental was sent against, after comparing everything the link says."""
    link = manifest.send_parent
    assert link is not None  # only incrementals get here
    if link.sequence >= manifest.sequence:
        raise _broken(manifest, f"its send parent {link.sequence} is not older")
    parent = _entry(world, link.sequence, f"manifest {link.sequence}, the send parent of manifest {manifest.sequence},")
    if parent.sha256 != link.manifest_sha256:
        raise _broken(manifest, f"manifest {link.sequence} is not the send parent it names: another SHA-256")
    if parent.manifest.backup_id != link.backup_id:
        raise _broken(manifest, f"manifest {link.sequence} is not the send parent it names: another backup id")
    if parent.manifest.snapshot.uuid != link.snapshot_uuid:
        raise _broken(manifest, f"manifest {link.sequence} is not the send parent it names: another snapshot UUID")
    return parent


def _broken(manifest: Manifest, problem: str) -> ChainBroken:
    message = f"manifest {manifest.sequence}: {problem}"
    return ChainBroken(message, sequence=manifest.sequence, backup_id=manifest.backup_id)
