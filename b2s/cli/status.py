"""`b2s status`: the last backup of each source, and what is overdue or interrupted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from b2s.cli.invocation import Invocation
from b2s.cli.options import Command, json_option
from b2s.cli.output import print_json, print_paragraph, print_table
from b2s.cli.plan import local_time
from b2s.core.text import escaped
from b2s.core.units import format_bytes, format_roughly
from b2s.errors import B2sError


@click.command("status", cls=Command)
@click.option("--check", is_flag=True, help="Exit 1 when a source is overdue.")
@json_option
@click.pass_obj
def command(invocation: Invocation, check: bool, as_json: bool) -> int:
    """Show the last backup of each source, its age, and what is overdue, interrupted or failed."""
    settings = invocation.settings()
    from b2s.backup.status import StatusReport

    document = StatusReport.read(settings).document()
    if as_json:
        print_json(document)
    else:
        print_table(
            ("source", "last backup", "age", "next due", "chain", "state"),
            [_row(source) for source in document["sources"]],
        )
        for source in document["sources"]:
            _print_error(source)
    overdue = [source["source"] for source in document["sources"] if source["overdue"]]
    if not check or not overdue:
        return 0
    invocation.error = B2sError(f"overdue: {', '.join(overdue)}", hint="run `b2s backup`, or look at its last log")
    return invocation.error.exit_code


def _row(source: dict[str, Any]) -> tuple[object, ...]:
    last, age = source["last_backup"], source["age_seconds"]
    return (
        source["source"],
        _local(last["created_at"]) if last else None,
        None if age is None else format_roughly(age),
        _local(source["next_due"]),
        f"{source['chain_length']}, {format_bytes(source['chain_bytes'])}" if last else None,
        _state(source),
    )


def _local(moment: str) -> str | None:
    return local_time(datetime.fromisoformat(moment))


def _print_error(source: dict[str, Any]) -> None:
    if source["last_error"]:
        at = source["last_error_at"]
        what = f"last error ({_local(at)})" if at else "the bucket could not be asked"
        print_paragraph("note: ", f"{source['source']}: {what}: {escaped(source['last_error'])}")
        if source["hint"]:
            print_paragraph("hint: ", escaped(source["hint"]))


def _state(source: dict[str, Any]) -> str:
    unknown = source["last_error"] and not source["last_error_at"]
    words = []
    if source["overdue"]:
        words.append("overdue" if source["last_backup"] else "not known" if unknown else "no backup yet")
    if source["interrupted"]:
        words.append(f"interrupted after {format_bytes(source['interrupted']['stored_bytes'])}")
    if source["last_error"] and not unknown:
        words.append("failed")
    return ", ".join(words) or "ok"
