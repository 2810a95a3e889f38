"""The state: whether it can be used, and what it remembers that nobody will go on with."""

from __future__ import annotations

from collections.abc import Iterator

from b2s.adapters.state import State
from b2s.backup.run_parts import store_name
from b2s.core.settings import Settings
from b2s.core.units import format_bytes
from b2s.doctor.finding import Finding, ok, warning


def check_state(settings: Settings) -> Iterator[Finding]:
    """Look at the state file, and for interrupted backups of a source or to a store the config does not have.

    Raises:
        StateError: It cannot be used, and no run can begin.
    """
    store, names = store_name(settings.s3), {source.name for source in settings.sources}
    with State.open_read_only(settings.state_path) as state:
        if state.rebuilt_reason is not None:
            detail = f"{settings.state_path} is of no use: {state.rebuilt_reason}"
            yield warning("state", detail, "look at the disk; the next run makes it anew from the bucket")
            return
        yield ok("state", "to be made by the first run" if state.created else settings.state_path)
        for progress in state.unfinished():
            intent = progress.intent
            if intent.source.name in names and intent.store == store:
                continue
            detail = (
                f"{intent.backup_id} of {intent.source.name} to {intent.store} was interrupted after "
                f"{format_bytes(progress.stored_bytes)}, and the config has that source or store no more: "
                f"its uploads and the snapshot {intent.snapshot.path} stay"
            )
            cure = "bring it back into a config with this state_path and run `b2s backup`; --fresh drops it"
            yield warning("interrupted", detail, cure)
