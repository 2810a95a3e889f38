"""Ask for what `scripts/restore-new-host` was not given, then become `b2s restore`.

What is asked is answered from the bucket (`b2s list`) and from this host's mounts, and an answer that cannot be is
asked for again. Where nobody can answer, only what has no default is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from b2s.adapters.mounts import btrfs_mounts
from b2s.adapters.s3_replies import ARCHIVE_CLASSES
from b2s.cli.restore import moment_from
from b2s.core.retrieval_times import retrieval_times
from b2s.core.text import escaped
from b2s.core.units import format_bytes
from b2s.errors import B2sError
from b2s.restore.staging import check_target

POINTS_SHOWN_MAX = 40
DAMAGED = 4  # exit code of `b2s list` where some of what it shows cannot be restored


class Unusable(Exception):
    """An answer that cannot be; the message says why."""


@dataclass
class Choice:
    """What was given and answered so far; None or empty: not yet."""

    bucket: str | None
    prefix: str | None
    region: str | None
    endpoint_url: str | None
    source: str | None
    target: str | None
    at: str | None
    backup: str | None
    tier: str | None
    more: list[str] = field(default_factory=list)  # for `b2s restore` as it is

    def where(self) -> list[str]:
        """Return the options that name the bucket."""
        return self._options("bucket", "prefix", "region", "endpoint_url")

    def options(self) -> list[str]:
        """Return all options."""
        return [*self.where(), *self._options("source", "target", "at", "backup", "tier"), *self.more]

    def _options(self, *names: str) -> list[str]:
        found = [(name, getattr(self, name)) for name in names]
        return [part for name, value in found if value for part in (f"--{name.replace('_', '-')}", value)]


def main() -> NoReturn:
    """Ask, say what will be done, and do it."""
    choice = given(sys.argv[1:])
    interactive = sys.stdin.isatty()
    try:
        sources = locate(choice)
        if not choice.source:
            choice.source = ask("Source", lambda answer: one_of(sources, answer), only_one(sources), shown(sources))
        points = points_of(sources, choice.source)
        if interactive and sources:
            ask_point(choice, points)
        if not choice.target:
            choice.target = ask("New subvolume to make", usable_target, *suggested_target(choice.source))
    except (EOFError, KeyboardInterrupt):
        fail("stopped; nothing was made, and nothing was asked of an archive", exit_code=130)
    if interactive:
        repeated = shlex.join(["scripts/restore-new-host", *choice.options()])
        say(f"to go on after an interruption, or to do the same again:\n    {repeated}")
    command = [sys.executable, "-m", "b2s", "restore", *choice.options()]
    os.execv(command[0], command)


def given(arguments: Sequence[str]) -> Choice:
    """Return what the command line says; a relative target is meant from where the script was called."""
    parser = argparse.ArgumentParser(prog="scripts/restore-new-host", allow_abbrev=False, add_help=False)
    parser.add_argument("--called-from", type=Path, required=True)
    for name in ("bucket", "prefix", "region", "endpoint-url", "source", "target", "at", "backup", "tier"):
        parser.add_argument(f"--{name}")
    found, more = parser.parse_known_args(arguments)
    values = vars(found)
    called_from = values.pop("called_from")
    if values["target"]:
        values["target"] = str(called_from / values["target"])
    return Choice(**values, more=more)


# --- asking ------------------------------------------------------------------------------------------


def ask(question: str, check: Callable[[str], str], default: str | None = None, context: str = "") -> str:
    """Return what `check` makes of the answer; ask again as long as it raises `Unusable`."""
    if not sys.stdin.isatty():
        if default is None:
            fail(f"nobody to ask: {question}", "give it as an option; see scripts/restore-new-host --help")
        return default
    if context:
        print(context, file=sys.stderr)
    while True:
        print(f"{question}{f' [{default}]' if default else ''}: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        answer = line.strip() or default
        if answer is None:
            continue
        try:
            return check(answer)
        except Unusable as error:
            print(f"  {escaped(str(error))}", file=sys.stderr)


def anything(answer: str) -> str:
    """Return any answer."""
    return answer


def say(text: str) -> None:
    """Tell what goes on."""
    print(f"==> {text}", file=sys.stderr)


def fail(message: str, hint: str = "", *, exit_code: int = 2) -> NoReturn:
    """End with an error."""
    print(f"error: {message}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)
    raise SystemExit(exit_code)


# --- where it is, and which point --------------------------------------------------------------------


def locate(choice: Choice) -> list[dict[str, Any]]:
    """Return the sources in the bucket that is named or asked for; nobody needs them where all else is given."""
    asked = not choice.bucket
    as_given = replace(choice)
    while True:
        if asked:
            ask_where(choice, as_given)
        known = choice.source and choice.target and (choice.at or choice.backup or not sys.stdin.isatty())
        if known and not asked:
            return []
        say("looking at the bucket")
        command = [sys.executable, "-m", "b2s", "list", *choice.where(), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode in (0, DAMAGED):
            sources: list[dict[str, Any]] = [each for each in json.loads(done.stdout)["sources"] if each["chains"]]
            if sources:
                return sources
            done.returncode = 2
            print("error: there is no backup under this prefix\nhint: check bucket and prefix", file=sys.stderr)
        if not (asked and sys.stdin.isatty()):
            raise SystemExit(done.returncode)


def ask_where(choice: Choice, as_given: Choice) -> None:
    """Ask for the bucket and what belongs to it, perhaps not for the first time; what was given is not asked."""
    choice.bucket = ask("Bucket", anything)
    if as_given.prefix is None:
        choice.prefix = ask("Prefix in the bucket (empty for none)", anything, "")
    if as_given.endpoint_url is None:
        choice.endpoint_url = ask("Endpoint URL (empty for Amazon S3)", anything, "")
    if as_given.region is None and not choice.endpoint_url:
        choice.region = ask("Region (empty for what the environment or ~/.aws says)", anything, "")


def shown(sources: Sequence[dict[str, Any]]) -> str:
    """Return the sources as a list for people."""
    lines = ["Sources:"]
    for source in sources:
        backups = [backup for chain in source["chains"] for backup in chain["backups"]]
        newest = max((backup["created_at"] for backup in backups if backup["created_at"]), default=None)
        size = sum(backup["bytes"] or 0 for backup in backups)
        when = f", the newest of {local(newest)}" if newest else ""
        lines.append(f"  {source['source']:<20} {len(backups)} backups, {format_bytes(size)}{when}")
    return "\n".join(lines)


def only_one(sources: Sequence[dict[str, Any]]) -> str | None:
    """Return the name of the source where there is no choice."""
    return sources[0]["source"] if len(sources) == 1 else None


def one_of(sources: Sequence[dict[str, Any]], answer: str) -> str:
    """Return the name of a source that exists."""
    if answer not in [source["source"] for source in sources]:
        raise Unusable(f"there is no source {answer[:80]!r}")
    return answer


def points_of(sources: Sequence[dict[str, Any]], source: str | None) -> list[dict[str, Any]]:
    """Return the backups of a source by sequence; each with the chain it needs, empty where it cannot be restored."""
    chains = [chain for found in sources if found["source"] == source for chain in found["chains"]]
    backups = {backup["sequence"]: backup for chain in chains for backup in chain["backups"]}
    return [
        {**backup, "needs": needed(backups, backup) if backup["restorable"] else []}
        for _, backup in sorted(backups.items())
    ]


def needed(by_sequence: dict[int, dict[str, Any]], backup: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the backups a restore of this one reads."""
    found = [backup]
    while (parent := by_sequence.get(found[-1].get("send_parent"))) is not None:
        found.append(parent)
    return found


def ask_point(choice: Choice, points: Sequence[dict[str, Any]]) -> None:
    """Ask which point, and how fast it is to be thawed where it is archived; say what it takes."""
    newest = next((point for point in reversed(points) if point["needs"]), None)
    if newest is None:
        fail(f"no backup of {choice.source} can be restored", "`b2s verify` tells what is damaged", exit_code=DAMAGED)
    if choice.at or choice.backup:
        try:
            point = found_point(points, choice.at or choice.backup or "")
        except Unusable as error:
            fail(str(error), exit_code=DAMAGED)
    else:
        rows = [row(each) for each in points[-POINTS_SHOWN_MAX:]]
        if len(points) > POINTS_SHOWN_MAX:
            rows.insert(0, f"  ({len(points) - POINTS_SHOWN_MAX} older ones; `b2s list` shows all)")
        context = "\n".join([f"Points of {choice.source}, times in the zone of this host:", *rows])
        question = "Which one: its number, its id, or a time for the newest not after it"
        default = str(newest["sequence"])
        choice.backup = ask(question, lambda text: str(found_point(points, text)["backup_id"]), default, context)
        point = found_point(points, choice.backup)
    size = sum(each["bytes"] for each in point["needs"])
    say(f"{point['backup_id']} needs {len(point['needs'])} backups, {format_bytes(size)}")
    if not choice.tier:
        choice.tier = ask_tier(point["needs"])


def row(point: dict[str, Any]) -> str:
    """Return one point as a line."""
    state = point["storage_class"] if point["needs"] else "cannot be restored"
    cells = (str(point["sequence"]), local(point["created_at"]), point["kind"] or "-", point["backup_id"] or "-", state)
    return "  {:>6}  {:<23}  {:<11}  {:<30}  {}".format(*(escaped(str(cell)) for cell in cells))


def found_point(points: Sequence[dict[str, Any]], answer: str) -> dict[str, Any]:
    """Return the point that a number, an id or a time means."""
    named = [each for each in points if answer in (str(each["sequence"]), each["backup_id"])]
    if not named:
        try:
            moment = moment_from(answer)
        except ValueError as error:
            raise Unusable(f"{answer[:80]!r} is no number or id of these, and {error}") from None
        times = [each for each in points if each["created_at"]]
        named = [each for each in times if datetime.fromisoformat(each["created_at"]) <= moment]
        if not named:
            raise Unusable(f"there is no backup of {moment:%Y-%m-%d %H:%M:%S %Z} or before")
    if not named[-1]["needs"]:
        raise Unusable(f"number {named[-1]['sequence']} cannot be restored; choose another one")
    return named[-1]


def ask_tier(backups: Sequence[dict[str, Any]]) -> str | None:
    """Ask how fast archived backups are to be thawed, after saying what that takes; None where none is archived."""
    cold = [each for each in backups if ARCHIVE_CLASSES & classes_of(each)]
    if not cold:
        return None
    classes = sorted(set().union(*(ARCHIVE_CLASSES & classes_of(each) for each in cold)))
    size = format_bytes(sum(each["bytes"] for each in cold))
    objects = sum(each["chunks"] for each in cold)
    times = retrieval_times(classes)
    lines = [
        f"{objects} objects, {size}, are archived ({', '.join(classes)}) and must be thawed first; the store charges "
        "for it.",
        "What is thawed already is not asked for again. It is waited for; you may interrupt and repeat it at will.",
        *(f"  {tier:<10} {time}{', the cheapest' if tier == 'Bulk' else ''}" for tier, time in times.items()),
    ]

    def tier_of(answer: str) -> str:
        if answer.capitalize() not in times:
            raise Unusable(f"choose {' or '.join(times)}")
        return answer.capitalize()

    return ask("How fast", tier_of, "Standard", "\n".join(lines))


def classes_of(backup: dict[str, Any]) -> set[str]:
    """Return the storage classes that its chunks are in."""
    return set(str(backup["storage_class"]).split("+"))


def local(created_at: str | None) -> str:
    """Return a time in the zone of this host."""
    return f"{datetime.fromisoformat(created_at).astimezone():%Y-%m-%d %H:%M:%S %Z}" if created_at else "-"


# --- where to --------------------------------------------------------------------------------------------


def suggested_target(source: str) -> tuple[str | None, str]:
    """Return a target that would do, if there is an obvious one, and what to know of this host's filesystems."""
    mounts = sorted({mount.mount_point for mount in btrfs_mounts() if "ro" not in mount.options})
    if not mounts:
        return None, "No btrfs filesystem is mounted here: make one (mkfs.btrfs) on an empty disk and mount it first."
    lines = [f"  {escaped(mount):<30} {format_bytes(shutil.disk_usage(mount).free)} free" for mount in mounts]
    target = str(Path(mounts[0]) / source)
    obvious = len(mounts) == 1 and not os.path.lexists(target)
    return (target if obvious else None), "\n".join(["Mounted btrfs filesystems:", *lines])


def usable_target(answer: str) -> str:
    """Return a path where a subvolume can appear."""
    if not answer.startswith("/"):
        raise Unusable("name it with its whole path, beginning with /")
    try:
        return str(check_target(Path(answer)))
    except B2sError as error:
        raise Unusable(error.message + (f"; {error.hint}" if error.hint else "")) from None


if __name__ == "__main__":
    main()
