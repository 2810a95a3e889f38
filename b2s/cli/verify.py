"""`b2s verify`: what is wrong in the bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from b2s.cli.invocation import Invocation
from b2s.cli.options import Command, StoreOptions, json_option, source_option, store_from, store_options
from b2s.cli.output import print_json, print_paragraph, print_table
from b2s.core.text import counted
from b2s.errors import ObjectArchived, StoredDataError, UsageError

if TYPE_CHECKING:
    from b2s.restore.verify import VerifyReport


@click.command("verify", cls=Command)
@source_option
@click.option("--backup", "backup_id", metavar="ID", help="Only this backup and the chain it hangs from.")
@click.option("--data", is_flag=True, help="Download everything, compare every hash and read every stream.")
@json_option
@store_options
@click.pass_obj
def command(
    invocation: Invocation,
    store: StoreOptions,
    sources: tuple[str, ...],
    backup_id: str | None,
    data: bool,
    as_json: bool,
) -> int:
    """Check what is in the bucket.

    Without --data only manifests are downloaded, and archived chunks need no retrieval.
    """
    from b2s.adapters.s3 import Bucket
    from b2s.cli.progress import watching
    from b2s.cli.restore import retry_logger, surroundings_of
    from b2s.core.layout import check_source_name
    from b2s.core.settings import RestoreSettings
    from b2s.processes.signals import StopRequest
    from b2s.restore.data_check import StreamDump
    from b2s.restore.verify import Verifier

    if backup_id is not None and len(sources) != 1:
        raise UsageError("--backup needs exactly one --source", hint="backup ids are looked up in one source")
    names = [check_source_name(name) for name in sources]
    choice = store_from(invocation, store)
    restore = choice.settings.restore if choice.settings else RestoreSettings()
    stop = StopRequest.install()
    with watching(choice.log) as watch, stop.interrupting():
        around = surroundings_of(invocation, choice, stop, watch)
        dump = StreamDump(choice.s3, restore.concurrency, around.boot, stop, around.log, around.on_child, watch)
        bucket = Bucket.connect(choice.s3, stop=stop.check, on_retry=retry_logger(around.log))
        bucket.check()
        verifier = Verifier(bucket, choice.s3.prefix, stop.check, around.log, dump if data else None, watch)
        for name in names or verifier.sources():
            verifier.check(name, backup_id)
    report = verifier.report
    if as_json:
        print_json(report.document())
    else:
        _print(report)
    invocation.results.append(
        {"findings": len(report.findings), "backups_checked": report.backups_checked, "archived": len(report.archived)}
    )
    if report.findings:
        first = report.findings[0]
        invocation.error = StoredDataError(
            f"{counted(len(report.findings), 'finding')}, the first: {first.finding} in {first.source}: {first.detail}",
            hint="`b2s restore` refuses what is damaged; make a new full: `b2s backup --full`",
        )
        return invocation.error.exit_code
    if report.archived:
        raise ObjectArchived(
            f"the data of {len(report.archived)} backups is archived and was not read",
            hint="`b2s verify` without --data works on archived objects; `b2s restore` retrieves them",
        )
    return 0


def _print(report: VerifyReport) -> None:
    if report.findings:
        rows = [(found.finding, found.source, found.backup_id, found.key, found.detail) for found in report.findings]
        print_table(("finding", "source", "backup", "key", "detail"), rows)
    by = f"{counted(report.chunks_by_sha256, 'chunk')} by size and SHA-256"
    if report.chunks_by_etag:
        by += f", {report.chunks_by_etag} by size and ETag only, because this store knows no SHA-256 of them"
    streams = f", {counted(report.streams_checked, 'stream')} read" if report.streams_checked else ""
    backups, findings = counted(report.backups_checked, "backup"), counted(len(report.findings), "finding")
    print_paragraph("", f"{backups} checked: {by}{streams}; {findings}")
