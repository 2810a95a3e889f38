"""`b2s list`: the backups in the bucket."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from b2s.cli.invocation import Invocation
from b2s.cli.options import Command, StoreOptions, json_option, source_option, store_from, store_options
from b2s.cli.output import print_json, print_paragraph, print_table, print_text
from b2s.core.text import counted, escaped
from b2s.core.units import format_bytes
from b2s.errors import StoredDataError

_LOOSE = {
    "unfinished": "in uploads that were begun and not completed",
    "unreferenced": "in completed chunks that no backup names: of an interrupted one, or left over",
}


@click.command("list", cls=Command)
@source_option
@store_options
@json_option
@click.pass_obj
def command(invocation: Invocation, sources: tuple[str, ...], store: StoreOptions, as_json: bool) -> int:
    """List the backups in the bucket as chains, oldest first, and what belongs to no backup."""
    choice = store_from(invocation, store)
    from b2s.backup.catalog import Catalog

    document = Catalog.read(choice.s3, sources).document()
    if as_json:
        print_json(document)
    else:
        _print(document, f"{choice.s3.bucket}/{choice.s3.prefix}".rstrip("/"))
    problems = [f"{source['source']}: {problem}" for source in document["sources"] for problem in source["problems"]]
    if not problems:
        return 0
    invocation.error = StoredDataError(
        f"{counted(len(problems), 'problem')}, the first: {problems[0]}",
        hint="`b2s verify` looks closer; what is whole restores",
    )
    return invocation.error.exit_code


def _print(document: dict[str, Any], where: str) -> None:
    """Print every chain as a table below a line about it, then what else there is to say."""
    sources = document["sources"]
    if not any(source["chains"] for source in sources):
        print_paragraph("note: ", f"no backup under {escaped(where)}; are bucket, prefix and source spelled right?")
    shown = [(source["source"], chain) for source in sources for chain in source["chains"]]
    for index, (source_name, chain) in enumerate(shown):
        print_text(("\n" if index else "") + _heading(source_name, chain))
        print_table(("no.", "created", "size", "class", "backup"), [_row(backup) for backup in chain["backups"]])
    for source in sources:
        for problem in source["problems"]:
            print_paragraph("note: ", f"{source['source']}: {escaped(problem)}")
        for what, meaning in _LOOSE.items():
            if source[f"{what}_bytes"]:
                print_paragraph("note: ", f"{source['source']}: {format_bytes(source[f'{what}_bytes'])} {meaning}")


def _heading(source: str, chain: dict[str, Any]) -> str:
    parts = [f"chain of {counted(len(chain['backups']), 'backup')}", "whole" if chain["whole"] else "broken"]
    if chain["bytes"] is not None:
        parts.append(format_bytes(chain["bytes"]))
    return f"{source}: {', '.join(parts)}"


def _row(backup: dict[str, Any]) -> tuple[object, ...]:
    created, size = backup["created_at"], backup["bytes"]
    return (
        backup["sequence"],
        _to_the_second(created) if created else None,
        None if size is None else format_bytes(size),
        backup["storage_class"],
        backup["backup_id"],
    )


def _to_the_second(created_at: str) -> str:
    """Return a time in the zone of this host as `b2s restore --at` takes it to mean this very backup."""
    return f"{datetime.fromisoformat(created_at).astimezone():%Y-%m-%d %H:%M:%S}"
