"""Tell the world around b2s how a backup run goes: the ping URL, the metrics file, systemd.

None of it may fail a run: what does not work is a warning in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from b2s.adapters import logs, metrics_textfile
from b2s.adapters.clock import Clock, SystemClock
from b2s.adapters.metrics_textfile import RunFigures, SourceFigures
from b2s.adapters.redaction import redact
from b2s.adapters.sd_notify import sd_notify
from b2s.core import events
from b2s.core.settings import Settings
from b2s.errors import B2sError, LockHeld, Stopped

STOPPED_SECONDS = 2.0  # for a ping of a run that was asked to stop: somebody waits for its end


class Announcer:
    """Announces one run; `began` once it has the lock, `ended` in any case."""

    def __init__(self, settings: Settings, run_id: str, clock: Clock | None = None) -> None:
        self._settings = settings
        self._run_id = run_id
        self._clock = clock or SystemClock()
        self._log: Any = logs.get_logger()
        self._started = self._clock.monotonic()

    def began(self) -> None:
        """Say that a run is under way."""
        sd_notify("READY=1", "STATUS=backing up")
        self._ping("start", f"run_id {self._run_id}")

    def ended(self, exit_code: int, error: B2sError | None, figures: Sequence[SourceFigures]) -> None:
        """Say how it ended. A run that found another one at work has nothing to say: the other one does."""
        if isinstance(error, LockHeld):
            return
        sd_notify("STOPPING=1", f"STATUS=ended with exit code {exit_code}")
        self._write_metrics(exit_code, figures)
        lines = [f"run_id {self._run_id}", f"exit_code {exit_code}"]
        lines += [f"source {each.source}: {'ok' if each.ok else 'failed'}" for each in figures]
        if error is not None:
            lines += [f"error: {error.message}", f"hint: {error.hint or '-'}"]
        signal = "" if exit_code == 0 else "fail"
        self._ping(signal, "\n".join(lines), STOPPED_SECONDS if isinstance(error, Stopped) else None)

    def _write_metrics(self, exit_code: int, figures: Sequence[SourceFigures]) -> None:
        path = self._settings.metrics.textfile
        if path is None:
            return
        run = RunFigures(self._clock.now(), self._clock.monotonic() - self._started, exit_code)
        try:
            metrics_textfile.write(path, run, figures, [source.name for source in self._settings.sources])
        except B2sError as error:
            self._log.warning(events.METRICS_FAILED, error=error.message, hint=error.hint)

    def _ping(self, signal: str, body: str, deadline_seconds: float | None = None) -> None:
        url = self._settings.notify.ping_url
        if url is None:
            return
        from b2s.adapters import notify  # urllib is not for those who ping nobody

        try:
            notify.ping(url, signal, redact(body), deadline_seconds or notify.DEADLINE_SECONDS)
        except B2sError as error:
            self._log.warning(events.PING_FAILED, signal=signal or "success", error=error.message, hint=error.hint)
