"""`BackupSummary` as JSON, for the cache in the state. Local only: no older version has to decode."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from b2s.core.manifest import Host, ManifestLink, SendParent, SnapshotIdentity, SourceIdentity
from b2s.core.model import Kind
from b2s.core.world import BackupSummary, ChunkSummary


@dataclass(frozen=True, slots=True)
class CachedSummary:
    """What is kept of one manifest; for a newest backup also where its chain begins.

    The latter saves the usual call of cron, which finds nothing due, from following hundreds of links.
    """

    backup: BackupSummary
    full_sequence: int | None = None  # None: the chain was not followed, or does not lead to a full
    chain_length: int | None = None


def encode(cached: CachedSummary) -> bytes:
    """Return ASCII JSON."""
    backup = asdict(cached.backup)
    backup["created_at"] = cached.backup.created_at.isoformat()
    backup["committed_at"] = cached.backup.committed_at.isoformat()
    backup["chunks"] = [[each.key, each.bytes, each.etag, each.sha256_composite] for each in cached.backup.chunks]
    fields = {"backup": backup, "full_sequence": cached.full_sequence, "chain_length": cached.chain_length}
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def decode(body: bytes) -> CachedSummary:
    """Return what was kept.

    Raises:
        ValueError: The bytes are not what `encode` writes.
    """
    try:
        fields: dict[str, Any] = json.loads(body)
        backup = fields["backup"]
        previous, send_parent, snapshot = backup["previous"], backup["send_parent"], backup["snapshot"]
        backup["kind"] = Kind(backup["kind"])
        backup["created_at"] = datetime.fromisoformat(backup["created_at"])
        backup["committed_at"] = datetime.fromisoformat(backup["committed_at"])
        backup["host"] = Host(**backup["host"])
        backup["source"] = SourceIdentity(**backup["source"])
        snapshot["nested_subvolumes"] = tuple(snapshot["nested_subvolumes"])
        backup["snapshot"] = SnapshotIdentity(**snapshot)
        backup["previous"] = None if previous is None else ManifestLink(**previous)
        backup["send_parent"] = None if send_parent is None else SendParent(**send_parent)
        backup["chunks"] = tuple(ChunkSummary(*chunk) for chunk in backup["chunks"])
        return CachedSummary(BackupSummary(**backup), fields["full_sequence"], fields["chain_length"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a summary: {error}") from error
