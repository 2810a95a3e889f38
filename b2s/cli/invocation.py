"""One call of b2s: its options, its log, and the last word it has."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from b2s import __version__
from b2s.cli.output import print_error, print_trace
from b2s.errors import B2sError, Stopped, UsageError

if TYPE_CHECKING:
    from b2s.core.settings import LogSettings, Settings

_SIGNAL_EXIT_BASE = 128
_RETRIEVAL_PENDING = 5
# These do work that an operator follows; of the others a terminal shows only results and errors.
_LOGGED_ON_TERMINALS = frozenset({"backup", "restore", "verify"})


def exit_code_of(error: B2sError) -> int:
    """Return the exit code that an error ends in."""
    return _SIGNAL_EXIT_BASE + error.signal_number if isinstance(error, Stopped) else error.exit_code


def new_run_id() -> str:
    """Return the id of a run: when it began, and 8 random hex digits."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


@dataclass(slots=True)
class GlobalOptions:
    """The options every command has; None where they were not given."""

    config: str | None = None
    log_level: str | None = None
    log_format: str | None = None


@dataclass(slots=True)
class Invocation:
    """What a command is given as its click object.

    A command calls `settings()` or `cli.options.store_from()` first (both start the log), does its work, and returns
    its exit code or raises. For a run that ends badly without an exception it sets `error`.
    """

    options: GlobalOptions = field(default_factory=GlobalOptions)
    run_id: str = field(default_factory=new_run_id)
    command: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)  # per source, for run_finished
    error: B2sError | None = None
    log: LogSettings | None = None  # in force, once the log was started
    _started_at: float = field(default_factory=time.monotonic)

    def config_path(self) -> str:
        """Return the config file to read: the option, `$B2S_CONFIG`, or the usual place."""
        from b2s.adapters.config_file import DEFAULT_PATH, PATH_VARIABLE

        return self.options.config or os.environ.get(PATH_VARIABLE) or DEFAULT_PATH

    def settings(self, *, check_host: bool = True) -> Settings:
        """Return the settings of the config file, the log options applied, and start the log.

        Raises:
            ConfigError: The file is missing or wrong.
        """
        from b2s.adapters import config_file

        settings = config_file.load(self.config_path(), check_host=check_host)
        return settings.model_copy(update={"log": self.start_log(settings.log)})

    def start_log(self, log: LogSettings | None = None) -> LogSettings:
        """Set up the log, say that the run began, and return the log settings in force (children need them).

        Args:
            log: What the config file says; None where there is none.
        """
        from b2s.adapters import logs
        from b2s.core import events

        in_force = self._with_options(log)
        logs.configure(in_force, self.run_id)
        self.log = in_force
        self._say("info", events.RUN_STARTED, self._facts())
        return in_force

    def finish(self, exit_code: int, trace: str | None = None) -> None:
        """Say how the run ended: the last event of every log, and on terminals a line for people.

        Args:
            exit_code: What the process ends with.
            trace: Of a bug; None for everything the user can understand.
        """
        from b2s.adapters import logs
        from b2s.core import events

        started = self.log is not None
        if not started and exit_code == 0:
            return  # --help, --version
        if self.log is None:
            self.log = self._with_options(None)
            logs.configure(self.log, self.run_id)
        failure: dict[str, Any] = {}
        if self.error is not None:
            failure = {"error": self.error.message, "error_class": type(self.error).__name__, "hint": self.error.hint}
            failure |= {"context": self.error.context} if self.error.context else {}
        if trace is not None:
            failure["trace"] = trace
        fields: dict[str, Any] = {
            "command": self.command,
            "exit_code": exit_code,
            "elapsed_seconds": round(time.monotonic() - self._started_at, 3),
            "results": self.results,
        }
        stopped = isinstance(self.error, Stopped) or exit_code == _RETRIEVAL_PENDING
        level = "info" if exit_code == 0 else "warning" if stopped else "error"
        for_people = not logs.writes_json(self.log.model_copy(update={"file": None}))
        if self.log.file or not for_people:
            self._say(level, events.RUN_FINISHED, fields | failure)
        elif started:  # errors and hints were shown as they came, and the first is shown once more below
            brief = [{key: value for key, value in row.items() if key not in ("error", "hint")} for row in self.results]
            self._say(level, events.RUN_FINISHED, fields | {"results": brief})
        if for_people:
            if trace is not None:
                print_trace(trace)
            if self.error is not None:
                print_error(self.error.message, self.error.hint)
        elif self.log.file and exit_code != 0:  # whoever reads only stderr learns it too: cron's mail, say
            logs.configure(self.log.model_copy(update={"file": None}), self.run_id)
            self._say(level, events.RUN_FINISHED, fields | failure)

    def _with_options(self, log: LogSettings | None) -> LogSettings:
        from b2s.core.settings import LogSettings

        given = {"level": self.options.log_level, "format": self.options.log_format}
        update = {key: value for key, value in given.items() if value is not None}
        return (log or LogSettings()).model_copy(update=update)

    def _facts(self) -> dict[str, Any]:
        from b2s.core import events

        return {"command": self.command, "b2s_version": __version__, "log_schema": events.LOG_SCHEMA}

    def _say(self, level: str, event: str, fields: dict[str, Any]) -> None:
        from b2s.adapters import logs

        quiet = self.log is not None and not logs.writes_json(self.log) and self.command not in _LOGGED_ON_TERMINALS
        getattr(logs.get_logger(), "debug" if quiet else level)(event, **fields)


def unknown_source(name: str, known: list[str]) -> UsageError:
    """Return the error for a `--source` that does not exist."""
    return UsageError(f"there is no source named {name[:80]!r}", hint=f"sources are: {', '.join(known) or 'none'}")
