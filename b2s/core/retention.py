"""Which of b2s's own snapshots of a source may be deleted."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from b2s.core.model import SubvolumeFacts


def no_longer_needed(own: Sequence[SubvolumeFacts], needed: Collection[str], retain: int) -> list[SubvolumeFacts]:
    """Return the snapshots to delete, oldest first.

    The age of a snapshot is the transaction of its creation, not its name or time: clocks are set back.

    Args:
        own: b2s's own snapshots of one source.
        needed: UUIDs that must stay whatever their age: the send parent of the next incremental, and what an
            unfinished backup is sent from. They count as retained.
        retain: How many to keep, at least; more are kept only if more are needed.
    """
    newest_first = sorted(own, key=lambda facts: facts.otransid, reverse=True)
    others = [facts for facts in newest_first if facts.uuid not in needed]
    room = max(0, retain - (len(own) - len(others)))
    return others[room:][::-1]
