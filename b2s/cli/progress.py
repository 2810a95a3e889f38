"""Live progress: a line on the terminal, or the status line of a systemd service. In cron, nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from b2s.adapters import log_sink, logs
from b2s.adapters.sd_notify import sd_notify, wanted
from b2s.core.progress import NoProgress, ProgressSink
from b2s.core.progress_meter import ProgressMeter
from b2s.core.text import escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from b2s.core.settings import LogSettings

REFRESHES_PER_SECOND = 4
STATUS_SECONDS = 5.0
BAR_CELLS = 20
_GAP = "  "


@contextmanager
def watching(log: LogSettings) -> Iterator[ProgressSink]:
    """Give the sink that fits where this runs; afterwards the terminal is as it was.

    Args:
        log: In force; a log in JSON is for machines, and shows no progress.
    """
    for_people = logs.on_terminal() and not logs.writes_json(log.model_copy(update={"file": None}))
    if for_people and os.environ.get("TERM", "dumb") != "dumb":
        terminal = TerminalProgress()
        try:
            yield terminal
        finally:
            terminal.end()
    elif wanted():
        yield ServiceProgress()
    else:
        yield NoProgress()


class TerminalProgress(ProgressMeter):
    """One line at the bottom of the terminal while there is something to watch; log lines pass above it."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__(time.monotonic)
        self._console = Console(stderr=True)
        self._live: Any = None

    def begin(self, source: str, doing: str, total_bytes: int | None, total_is: str = "") -> None:
        """Begin a stream."""
        super().begin(source, doing, total_bytes, total_is)
        self._show()

    def counted(self, source: str, doing: str, done: int, total: int) -> None:
        """Tell how many of something are done."""
        super().counted(source, doing, done, total)
        self._show()

    def end(self) -> None:
        """End it, and take the line away."""
        super().end()
        live, self._live = self._live, None
        if live is not None:
            log_sink.show_stderr_lines_with(None)
            live.stop()

    def _show(self) -> None:
        if self._live is not None:
            return
        from rich.live import Live

        self._live = Live(
            console=self._console,
            get_renderable=lambda: progress_line(self, self._console),
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        log_sink.show_stderr_lines_with(self._print_above)

    def _print_above(self, line: str) -> None:
        from rich.text import Text

        self._console.print(Text.from_ansi(line), soft_wrap=True, highlight=False)


def progress_line(meter: ProgressMeter, console: Console) -> Text:
    """Return the line, as much of it as the terminal is wide: never wrapped, the most important first."""
    from rich.text import Text

    room = max(1, console.width - 1)  # in the last column some terminals wrap already
    line = Text(no_wrap=True, overflow="ellipsis", end="")
    whole = True
    for index, word in enumerate(meter.words()):
        added = (_GAP if index else "") + escaped(word)
        if index and line.cell_len + len(added) > room:
            whole = False
            continue
        line.append(added, style="bold" if index == 0 else "")
    share = meter.share
    if whole and share is not None and line.cell_len + len(_GAP) + BAR_CELLS <= room:
        done = int(share * BAR_CELLS)
        full, empty = ("━", "─") if "utf" in console.encoding.lower() else ("#", "-")
        line.append(_GAP)
        line.append(full * done, style="green")
        line.append(empty * (BAR_CELLS - done), style="dim")
    line.truncate(room, overflow="ellipsis")
    return line


class ServiceProgress(ProgressMeter):
    """Tells systemd now and then; `systemctl status b2s` shows it."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self._told = -STATUS_SECONDS

    def begin(self, source: str, doing: str, total_bytes: int | None, total_is: str = "") -> None:
        """Begin a stream."""
        super().begin(source, doing, total_bytes, total_is)
        self._tell()

    def moved(self, count: int) -> None:
        """Count bytes on the wire."""
        super().moved(count)
        self._tell()

    def stored(self, count: int, *, reused: bool) -> None:
        """Count bytes of the stream that are where they belong."""
        super().stored(count, reused=reused)
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told >= STATUS_SECONDS:
            self._told = now
            sd_notify("STATUS=" + escaped(", ".join(self.words())))
