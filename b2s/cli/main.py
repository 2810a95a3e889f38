"""The `b2s` command: finds the command, runs it, and turns how it ended into an exit code and a last line."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from b2s import __version__
from b2s.cli import output
from b2s.cli.invocation import GlobalOptions, Invocation, exit_code_of
from b2s.cli.options import LOG_FORMATS, Group
from b2s.errors import B2sError, Stopped, UsageError

COMPLETION_VARIABLE = "_B2S_COMPLETE"  # set by the shell, see completion/

_GARBAGE_OBJECTS = 200_000  # new ones before Python looks for garbage: more than what a whole start makes

_LAST_WORDS = (
    b'{"event":"run_finished","level":"error","exit_code":1,"error":"this host gives b2s no memory to begin"}\n'
)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)

# Imported only when called: `b2s --help` should not wait for boto3.
_COMMANDS = {
    "backup": "Back up what is due.",
    "plan": "Show what backup would do now, and when each source is next due.",
    "list": "List the backups in the bucket.",
    "restore": "Restore a backup into a new subvolume.",
    "verify": "Check what is in the bucket.",
    "status": "Show the last backup of each source, and what is overdue or interrupted.",
    "doctor": "Check this host and the bucket, and say how to cure what is wrong.",
    "config": "Check or show the config file, or print its JSON Schema.",
}


class _Commands(Group):
    """The commands of b2s, one module of this package each."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; its module has it under the name `command`."""
        if cmd_name not in _COMMANDS:
            return None
        ctx.ensure_object(Invocation).command = cmd_name
        command: click.Command = importlib.import_module(f"b2s.cli.{cmd_name}").command
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def main(self, args: Sequence[str] | None = None, *_args: Any, **_extra: Any) -> NoReturn:
        """Run as a program, also under click's own test runner."""
        sys.exit(run(sys.argv[1:] if args is None else list(args)))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="b2s", message="%(prog)s %(version)s")
def cli() -> None:
    """Back up btrfs subvolumes to S3 and restore them anywhere."""


def main() -> NoReturn:
    """Run b2s and end the process with its exit code."""
    # Settings shall mean the same on every host, and looking for plugins costs as much as reading the config file.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Imports make hundreds of thousands of objects that stay; looking through them for garbage, every 700 new ones,
    # costs a quarter of a small run.
    gc.set_threshold(_GARBAGE_OBJECTS)
    output.ensure_utf8()
    output.ensure_standard_streams()
    if COMPLETION_VARIABLE in os.environ:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(cli, {}, "b2s", COMPLETION_VARIABLE, os.environ[COMPLETION_VARIABLE]))
    _leave(run(sys.argv[1:]))


def _leave(code: int) -> NoReturn:
    """End the process without taking all of Python apart first: 20 ms for nothing.

    What anybody registered to be done at the end is done, and what was printed is out.
    """
    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # it is where it was closed before we began
                stream.flush()
    except (OSError, ValueError):
        sys.exit(code)  # Python says what is wrong with them
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; nothing but `SystemExit` of others gets out."""
    invocation = Invocation(options=GlobalOptions(log_format=_log_format_in(arguments)))
    trace: str | None = None
    try:
        with cli.make_context("b2s", list(arguments), obj=invocation) as context:
            result = cli.invoke(context)
            code = result if isinstance(result, int) else 0
    except click.exceptions.Exit as ended:
        code = ended.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        invocation.error = Stopped("interrupted", signal_number=2)
        code = exit_code_of(invocation.error)
    except click.ClickException as wrong:
        invocation.error = _usage_error(wrong)
        code = exit_code_of(invocation.error)
    except B2sError as error:
        invocation.error = error
        code = exit_code_of(error)
    except Exception as bug:  # noqa: BLE001 - the outermost boundary: a bug is told, with its trace
        code = 1
        invocation.error = _exhaustion(bug)
        if invocation.error is None:
            trace = traceback.format_exc()
            invocation.error = B2sError(
                f"unexpected {type(bug).__name__}: {bug}",
                hint="this is a bug in b2s; please report it with the trace",
            )
    try:
        invocation.finish(code, trace)
    except MemoryError:  # not even the log could be set up
        os.write(2, _LAST_WORDS)
        return code or 1
    return code


def _exhaustion(error: Exception) -> B2sError | None:
    """Return what to tell when the host gave us no memory, process or descriptor any more; None for anything else."""
    by_errno = isinstance(error, OSError) and error.errno in _EXHAUSTED
    by_text = isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    if not (by_errno or by_text or isinstance(error, MemoryError)):
        return None
    return B2sError(
        f"this host gives b2s no more memory, processes or open files: {str(error) or type(error).__name__}",
        hint="look at free memory and at the limits (ulimit -a; LimitNOFILE, TasksMax and MemoryMax of a unit)",
    )


def _usage_error(wrong: click.ClickException) -> UsageError:
    context = getattr(wrong, "ctx", None)
    path = context.command_path if context is not None else "b2s"
    return UsageError(wrong.format_message(), hint=f"see `{path} --help`")


def _log_format_in(arguments: list[str]) -> str | None:
    """Return the log format that is asked for, so that even a wrong command line is answered in it."""
    wanted = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, _, value = argument.partition("=")
        if name == "--log-format":
            wanted = value or following
    return wanted if wanted in LOG_FORMATS else None
