"""`BackupIntent` as JSON text, for the journal. Local only: no older version has to decode."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from b2s.core.journal import BackupIntent
from b2s.core.manifest import ManifestLink, SendParent, SnapshotIdentity, SourceIdentity
from b2s.core.model import Kind, Reason


def encode(intent: BackupIntent) -> str:
    """Return ASCII JSON; undecodable bytes of paths survive as escaped surrogates."""
    return json.dumps({**asdict(intent), "created_at": intent.created_at.isoformat()}, sort_keys=True)


def decode(text: str) -> BackupIntent:
    """Return the intent.

    Raises:
        ValueError: The text is not what `encode` writes.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        previous, send_parent = fields["previous"], fields["send_parent"]
        snapshot = fields["snapshot"]
        return BackupIntent(
            **{
                **fields,
                "kind": Kind(fields["kind"]),
                "reason": Reason(fields["reason"]),
                "created_at": datetime.fromisoformat(fields["created_at"]),
                "source": SourceIdentity(**fields["source"]),
                "snapshot": SnapshotIdentity(**{**snapshot, "nested_subvolumes": tuple(snapshot["nested_subvolumes"])}),
                "previous": None if previous is None else ManifestLink(**previous),
                "send_parent": None if send_parent is None else SendParent(**send_parent),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an intent: {error}") from error
