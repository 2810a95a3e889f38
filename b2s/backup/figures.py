"""What a run learns of each source, as figures for monitoring."""

from __future__ import annotations

from dataclasses import replace

from b2s.adapters.metrics_textfile import SourceFigures
from b2s.core.manifest import Manifest
from b2s.core.model import ActionKind, Kind
from b2s.core.plan import Decision
from b2s.core.world import HeadChain


def planned(decision: Decision, chain: HeadChain | None) -> SourceFigures:
    """Return what is known before anything is done: a backup that is to be made is not made yet."""
    nothing_to_do = decision.action is ActionKind.SKIP
    if chain is None:
        return SourceFigures(decision.source, nothing_to_do, next_due=decision.next_due)
    head = chain.head
    return SourceFigures(
        decision.source,
        nothing_to_do,
        last_backup_at=head.created_at,
        last_backup_bytes=head.stream_bytes,
        last_backup_seconds=(head.committed_at - head.created_at).total_seconds(),
        chain_length=chain.length,
        next_due=decision.next_due,
    )


def committed(before: SourceFigures, manifest: Manifest) -> SourceFigures:
    """Return what is known once a backup was committed."""
    return replace(
        before,
        ok=True,
        last_backup_at=manifest.created_at,
        last_backup_bytes=manifest.stream.bytes,
        last_backup_seconds=(manifest.committed_at - manifest.created_at).total_seconds(),
        chain_length=1 if manifest.kind is Kind.FULL else (before.chain_length or 0) + 1,
    )


def failed(before: SourceFigures | None, source: str) -> SourceFigures:
    """Return what is known of a source for which something went wrong."""
    return SourceFigures(source, ok=False) if before is None else replace(before, ok=False)
