"""`b2s restore`: one backup of one source into a new subvolume."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from b2s.cli.invocation import Invocation
from b2s.cli.options import Command, StoreChoice, StoreOptions, store_from, store_options
from b2s.core.text import escaped
from b2s.errors import B2sError, UsageError

if TYPE_CHECKING:
    from b2s.core.progress import ProgressSink
    from b2s.core.settings import RestoreSettings
    from b2s.processes.signals import StopRequest
    from b2s.restore.run import Restored, RestoreSurroundings


def moment_from(text: str) -> datetime:
    """Return a point in time as an aware datetime: ISO 8601, local time where no zone is given.

    Also as `b2s list` prints it, with a name behind it: UTC, or this host's own zone.

    Raises:
        ValueError: It is none; the message says what is.
    """
    bare, _, zone = text.strip().rpartition(" ")
    try:
        if zone == "UTC":
            return datetime.fromisoformat(bare).replace(tzinfo=UTC).astimezone()
        return datetime.fromisoformat(bare if zone in time.tzname else text.strip()).astimezone()
    except (ValueError, OverflowError):
        allowed = "write 2026-11-30, 2026-11-30T02:00, or with a zone: 2026-11-30T02:00Z"
        raise ValueError(f"{text[:80]!r} is not a time; {allowed}") from None


def _moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    try:
        return None if value is None else moment_from(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _duration(_ctx: click.Context, _param: click.Parameter, value: str | None) -> timedelta | None:
    from b2s.core.units import parse_duration

    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r:.80}: {error}") from None


@click.command("restore", cls=Command)
@click.option("--source", required=True, metavar="NAME", help="The source, by the name it has in the bucket.")
@click.option("--target", required=True, metavar="DIR", help="The subvolume to make; must not exist, on btrfs.")
@click.option(
    "--at",
    callback=_moment,
    metavar="TIME",
    help="The newest backup made at TIME or before (ISO 8601; local time without a zone; a date is its midnight).",
)
@click.option("--backup", "backup_id", metavar="ID", help="This backup.  [default: the newest]")
@click.option(
    "--verify",
    type=click.Choice(["full", "sample", "none"]),
    help="Compare afterwards with the sent snapshot, where it is on this host.  [default: full]",
)
@click.option("--wait/--no-wait", default=None, help="Wait for archived chunks, or exit 5 and be run again.")
@click.option("--tier", type=click.Choice(["Standard", "Bulk", "Expedited"]), help="How fast archived chunks come.")
@click.option("--timeout", callback=_duration, metavar="D", help="Wait at most this long.  [default: 72h]")
@click.option(
    "--keep",
    type=click.Choice(["none", "last", "all"]),
    default="last",
    show_default=True,
    help="What to keep of what was received, read-only, in .b2s-received beside the target.",
)
@store_options
@click.pass_obj
def command(
    invocation: Invocation,
    store: StoreOptions,
    source: str,
    target: str,
    at: datetime | None,
    backup_id: str | None,
    verify: str | None,
    wait: bool | None,
    tier: str | None,
    timeout: timedelta | None,
    keep: str,
) -> int:
    """Restore a backup into a new subvolume.

    Needs only the bucket: no config, no state of the host that made the backup.
    """
    if at is not None and backup_id is not None:
        raise UsageError("--at and --backup exclude each other", hint="give one of them, or none for the newest")
    choice = store_from(invocation, store)
    given = {"verify": verify, "wait": wait, "tier": tier, "timeout": timeout}
    settings = _settings(choice).model_copy(update={name: value for name, value in given.items() if value is not None})
    restored = _restore(invocation, choice, settings, source, Path(target), at, backup_id, keep)
    invocation.results.append(
        {
            "source": source,
            "backup_id": restored.backup_id,
            "target": str(restored.target),
            "received_backups": restored.received_backups,
            "reused_backups": restored.reused_backups,
            "verified": restored.verified.value,
        }
    )
    _print(source, restored)
    return 0


def _settings(choice: StoreChoice) -> RestoreSettings:
    from b2s.core.settings import RestoreSettings

    return choice.settings.restore if choice.settings else RestoreSettings()


def _restore(
    invocation: Invocation,
    choice: StoreChoice,
    settings: RestoreSettings,
    source: str,
    target: Path,
    at: datetime | None,
    backup_id: str | None,
    keep: str,
) -> Restored:
    from b2s.adapters.s3 import Bucket
    from b2s.cli.progress import watching
    from b2s.core.layout import check_source_name
    from b2s.processes.signals import StopRequest
    from b2s.restore.compare import Depth
    from b2s.restore.points import Wanted
    from b2s.restore.retrieval import RetrievalPolicy
    from b2s.restore.run import Keep, RestoreMeans, RestoreRequest, RestoreRun

    request = RestoreRequest(
        check_source_name(source),
        target,
        Wanted(backup_id, at),
        Keep(keep),
        Depth(settings.verify),
        settings.sample_files,
    )
    policy = RetrievalPolicy(
        settings.tier, settings.retrieval_days, settings.wait, settings.poll_interval, settings.timeout
    )
    stop = StopRequest.install()
    with watching(choice.log) as watch:
        surroundings = surroundings_of(invocation, choice, stop, watch)
        with stop.interrupting():
            bucket = Bucket.connect(choice.s3, stop=stop.check, on_retry=retry_logger(surroundings.log))
        means = RestoreMeans(choice.s3, policy, settings.concurrency)
        return RestoreRun(request, means, bucket, surroundings).execute()


def surroundings_of(
    invocation: Invocation, choice: StoreChoice, stop: StopRequest, watch: ProgressSink
) -> RestoreSurroundings:
    """Return what a restore needs to know of the command it runs in."""
    from b2s.adapters import logs
    from b2s.adapters.clock import SystemClock
    from b2s.cli.output import print_notice
    from b2s.core import events
    from b2s.processes.child import ChildBoot
    from b2s.restore.run import RestoreSurroundings

    log = logs.get_logger()
    boot = ChildBoot(invocation.run_id, "supervisor", choice.log)
    for_people = not logs.writes_json(choice.log)

    def on_child(pid: int, process: str) -> None:
        log.info(events.PROCESS_STARTED, pid=pid, process=process, child_pid=pid, child=process)

    def progress(line: str) -> None:
        if for_people:
            print_notice(line)

    return RestoreSurroundings(boot, stop, log, on_child, progress, SystemClock(), watch)


def retry_logger(log: Any) -> Callable[[B2sError, int, float], None]:
    """Return what logs the supervisor's own calls that are tried again."""
    from b2s.core import events

    def retried(error: B2sError, attempt: int, wait_seconds: float) -> None:
        log.warning(events.PART_RETRIED, error=error.message, attempt=attempt, wait_seconds=round(wait_seconds, 3))

    return retried


def _print(source: str, restored: Restored) -> None:
    from b2s.cli.output import print_paragraph
    from b2s.restore.run import Verified

    how = {
        Verified.CONTENT: f"content equal to the sent snapshot ({restored.compared_files} files read)",
        Verified.MANIFEST: "sizes, hashes and UUIDs agree with the manifest; the sent snapshot is not on this host",
        Verified.NOTHING: "not compared afterwards; every segment's hash was checked before it was received",
    }[restored.verified]
    print_paragraph("restored: ", f"{restored.backup_id} of {source} to {escaped(str(restored.target))}")
    print_paragraph("verified: ", how)
