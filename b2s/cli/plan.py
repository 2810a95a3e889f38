"""`b2s plan`: what backup would do now, why, and when each source is next due."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from b2s.cli.invocation import Invocation
from b2s.cli.options import Command, json_option, source_option
from b2s.cli.output import print_json, print_paragraph, print_table
from b2s.core.text import escaped

if TYPE_CHECKING:
    from b2s.backup.run_result import RunResult


@click.command("plan", cls=Command)
@source_option
@json_option
@click.pass_obj
def command(invocation: Invocation, sources: tuple[str, ...], as_json: bool) -> int:
    """Show what backup would do now, and when each source is next due; change nothing."""
    settings = invocation.settings()
    from b2s.backup.run import make_plan
    from b2s.backup.run_result import BackupOptions

    result = make_plan(settings, BackupOptions(sources=sources))
    if as_json:
        print_json(plan_document(result))
    else:
        print_plan(result)
    invocation.error = result.error
    return result.exit_code


def plan_document(result: RunResult) -> dict[str, Any]:
    """Return decisions, and what failed, as the JSON document of `plan --json`; times are UTC."""
    return {
        "actions": [
            {
                "source": decision.source,
                "action": str(decision.action),
                "reason": str(decision.reason),
                "detail": decision.detail,
                "hint": decision.hint,
                "next_due": _time(decision.next_due),
                "next_full_due": _time(decision.next_full_due),
            }
            for decision in result.plan
        ],
        "errors": [
            {"source": each.source, "error": each.error, "hint": each.hint}
            for each in result.sources.values()
            if not each.ok
        ],
    }


def print_plan(result: RunResult) -> None:
    """Print decisions as a table, times in the local zone, and below it the hints and what could not be decided."""
    print_table(
        ("source", "action", "reason", "next due", "detail"),
        [(item.source, item.action, item.reason, local_time(item.next_due), item.detail) for item in result.plan],
    )
    for item in result.plan:
        if item.hint:
            print_paragraph("hint: ", f"source {item.source}: {escaped(item.hint)}")
    for failed in result.sources.values():
        print_paragraph("note: ", f"source {failed.source} cannot be planned: {escaped(failed.error or '')}")


def local_time(moment: datetime | None) -> str | None:
    """Return a moment for people, in the zone of this host."""
    return None if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
