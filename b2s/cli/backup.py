"""`b2s backup`: back up what is due."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from b2s.cli.invocation import Invocation
from b2s.cli.options import Command, source_option
from b2s.cli.plan import print_plan
from b2s.errors import B2sError, UsageError

if TYPE_CHECKING:
    from b2s.backup.run_result import BackupOptions, RunResult
    from b2s.core.settings import Settings


@click.command("backup", cls=Command)
@source_option
@click.option("--once", is_flag=True, help="Back up now, due or not, changed or not.")
@click.option("--full", is_flag=True, help="Make a full backup now; implies --once.")
@click.option("--fresh", is_flag=True, help="Drop an interrupted backup instead of resuming it.")
@click.option("--adopt", is_flag=True, help="Take over a source name that another host or subvolume wrote.")
@click.option("--dry-run", is_flag=True, help="Show the plan with its reasons; change nothing.")
@click.option(
    "--no-s3", is_flag=True, help="Snapshot, send and measure; upload and commit nothing, remove the snapshot."
)
@click.pass_obj
def command(
    invocation: Invocation,
    sources: tuple[str, ...],
    once: bool,
    full: bool,
    fresh: bool,
    adopt: bool,
    dry_run: bool,
    no_s3: bool,
) -> int:
    """Back up what is due: snapshot every due source, then send and commit one by one."""
    if dry_run and no_s3:
        raise UsageError("--dry-run and --no-s3 cannot be used together", hint="--dry-run changes nothing at all")
    settings = invocation.settings()
    from b2s.backup.run import BackupRun
    from b2s.backup.run_result import BackupOptions

    options = BackupOptions(
        sources=sources, once=once or full, full=full, fresh=fresh, adopt=adopt, dry_run=dry_run, no_s3=no_s3
    )
    if dry_run:
        result = BackupRun(settings, options, invocation.run_id).execute()
        print_plan(result)
    else:
        result = _run(invocation.run_id, settings, options)
    invocation.results = [dataclasses.asdict(each) for each in result.sources.values()]
    invocation.error = result.error
    return result.exit_code


def _run(run_id: str, settings: Settings, options: BackupOptions) -> RunResult:
    """Run, shown on the terminal, and announced to whoever monitors backups: also when it ends by a bug."""
    from b2s.adapters.priority import set_priority
    from b2s.backup.announcer import Announcer
    from b2s.backup.run import BackupRun
    from b2s.backup.run_result import RunResult
    from b2s.cli.progress import watching

    announcer = Announcer(settings, run_id)
    result = RunResult(error=B2sError("ended by a bug; the log has its trace"))
    try:
        set_priority(None, settings.process.nice, settings.process.ionice)  # what is started later inherits it
        with watching(settings.log) as progress:
            run = BackupRun(settings, options, run_id, progress=progress)
            if not options.no_s3:  # a measurement is nobody's business
                run.on_begun = announcer.began
            result = run.execute()
    except B2sError as error:
        result = RunResult(error=error)
    finally:
        if not options.no_s3:
            announcer.ended(result.exit_code, result.error, list(result.figures.values()))
    return result
