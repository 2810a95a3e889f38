"""The log: one event per line, JSON for machines or console lines for people, the same in every process.

structlog does the work; it is imported late, because `b2s --help` should not wait for it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from b2s.adapters.console_lines import console_line, terminal_width
from b2s.adapters.log_sink import FileSink, StderrSink
from b2s.adapters.redaction import redact
from b2s.core import events
from b2s.errors import UsageError

if TYPE_CHECKING:
    from b2s.core.settings import LogSettings

STRING_LENGTH_MAX = 8192  # characters of one string
LINE_LENGTH_MAX = 256 * 1024  # characters of one line; a longer one keeps only what every line has
_ITEMS_MAX = 500
_DEPTH_MAX = 6
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_FIRST = ("event", "timestamp", "level", "run_id", "pid", "process")

# A terminal shows these as a table, or as the error that ends the command.
_TOLD_OTHERWISE = {events.VERIFY_FOUND, events.RESTORE_FAILED}

EventDict = MutableMapping[str, Any]


def writes_json(settings: LogSettings) -> bool:
    """Return whether the log is JSON: asked for, or going anywhere but to a terminal."""
    return settings.format == "json" or (settings.format == "auto" and (bool(settings.file) or not on_terminal()))


def on_terminal() -> bool:
    """Return whether stderr is a terminal."""
    try:
        return sys.stderr.isatty()
    except (OSError, ValueError, AttributeError):  # closed; there never was one
        return False


def configure(settings: LogSettings, run_id: str, process: str = "supervisor") -> None:
    """Set up the log of this process; every line then carries the run, the pid and the process.

    Raises:
        UsageError: `log.file` cannot be opened.
    """
    sink = FileSink(settings.file) if settings.file else StderrSink()
    _configure(settings, sink, run_id, process)


def configure_child(settings: LogSettings, run_id: str, process: str) -> None:
    """Set up the log of a child process: its own file handle, stderr where the file cannot be opened."""
    sink: FileSink | StderrSink
    try:
        sink = FileSink(settings.file) if settings.file else StderrSink()
    except UsageError:
        sink = StderrSink()
    _configure(settings, sink, run_id, process)


def get_logger() -> Any:
    """Return the logger; its methods take an event name and fields: `log.info(events.RUN_STARTED, host=...)`."""
    structlog = _structlog()
    if not structlog.is_configured():
        from b2s.core.settings import LogSettings

        _configure(LogSettings(level="warning", format="json"), StderrSink(), "", "supervisor")
    return structlog.get_logger()


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as bounded JSON types, without secrets; what JSON has no type for becomes its text."""
    if value is None or isinstance(value, bool | int):
        return value if not isinstance(value, int) or abs(value) < 2**63 else str(value)[:100]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < _DEPTH_MAX and isinstance(value, Mapping):
        return {str(plain(str(key))): plain(item, depth + 1) for key, item in list(value.items())[:_ITEMS_MAX]}
    if depth < _DEPTH_MAX and isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth + 1) for item in list(value)[:_ITEMS_MAX]]
    text = redact(str(value))
    if len(text) > STRING_LENGTH_MAX:
        text = f"{text[:STRING_LENGTH_MAX]}... ({len(text)} characters)"
    return text


def _configure(settings: LogSettings, sink: FileSink | StderrSink, run_id: str, process: str) -> None:
    structlog = _structlog()

    def add_facts(_logger: Any, level: str, event_dict: EventDict) -> EventDict:
        facts: dict[str, Any] = {
            "event": "",
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": "warning" if level == "warn" else level,
            "run_id": run_id,
            "pid": os.getpid(),
            "process": process,
        }
        # pid and process given with the event win: `process_started` carries those of the child.
        return facts | {key: plain(value) for key, value in event_dict.items()}

    render = _json_line if writes_json(settings) else _console_renderer(settings)
    structlog.configure(
        processors=[structlog.processors.format_exc_info, add_facts, render],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
        context_class=dict,
        logger_factory=lambda *_args: _SinkLogger(sink),
        cache_logger_on_first_use=False,
    )


def _structlog() -> Any:
    """Import structlog without rich, which it would use for traces that show local variables: secrets among them.

    It also costs more to import than all the rest of structlog, and cron's run with nothing due needs neither.
    """
    hidden = "rich" not in sys.modules
    if hidden:
        sys.modules["rich"] = None  # type: ignore[assignment]  # what the import system takes for "not installed"
    try:
        import structlog
    finally:
        if hidden:
            del sys.modules["rich"]
    return structlog


class _SinkLogger:
    """What structlog calls with a finished line."""

    def __init__(self, sink: FileSink | StderrSink) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        """Write one line."""
        self._sink.write(line)

    debug = info = warning = warn = error = critical = exception = msg


def _json_line(_logger: Any, _level: str, event_dict: EventDict) -> str:
    # ASCII only: U+2028 and its like would end the line for some readers, lone surrogates break others.
    line = json.dumps(event_dict, ensure_ascii=True, separators=(",", ":"))
    if len(line) <= LINE_LENGTH_MAX:
        return line
    facts = {key: value for key, value in event_dict.items() if key in _FIRST or isinstance(value, int | float)}
    return json.dumps(facts | {"cut_characters": len(line)}, ensure_ascii=True, separators=(",", ":"))


def _console_renderer(settings: LogSettings) -> Any:
    drop = _structlog().DropEvent
    for_terminal = not settings.file and on_terminal()
    colours = for_terminal and "NO_COLOR" not in os.environ
    hidden = {events.PROCESS_STARTED} | (_TOLD_OTHERWISE if for_terminal else set())
    if settings.level == "debug":
        hidden = set()

    def render(_logger: Any, _level: str, event_dict: EventDict) -> str:
        if event_dict["event"] in hidden:
            raise drop
        shown = {key: value for key, value in event_dict.items() if key not in ("run_id", "pid", "process")}
        return console_line(shown, colours=colours, width=terminal_width(sys.stderr) if for_terminal else None)

    return render
