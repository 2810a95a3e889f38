"""The results of a run for Prometheus: a file for node_exporter's textfile collector, replaced as a whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from b2s.errors import B2sError

# Every metric with its meaning; docs/monitoring.md explains them, a test compares.
RUN_METRICS = {
    "b2s_last_run_timestamp_seconds": "When the last run of `b2s backup` ended.",
    "b2s_last_run_duration_seconds": "How long it took.",
    "b2s_last_run_exit_code": "Its exit code; 0 is success.",
}
SOURCE_METRICS = {
    "b2s_source_last_run_success": "1 when the last run left nothing undone for the source, else 0.",
    "b2s_source_last_success_timestamp_seconds": "When a run last left nothing undone: backed up, or nothing due.",
    "b2s_source_last_backup_timestamp_seconds": "The moment the newest committed backup shows.",
    "b2s_source_last_backup_bytes": "Bytes of its stream.",
    "b2s_source_last_backup_duration_seconds": "From its snapshot to its commit, interruptions included.",
    "b2s_source_chain_length": "Backups in the chain it ends, the full included.",
    "b2s_source_next_due_timestamp_seconds": "When the next backup is due; in the past when one is due and not made.",
    "b2s_source_overdue": "1 when a backup is due and the last run did not make it, else 0.",
}
_SAMPLE = re.compile(r'^(b2s_source_\w+)\{source="([^"]+)"\} (\S+)$', re.MULTILINE)
_FILE_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RunFigures:
    """How a run ended."""

    ended_at: datetime  # aware UTC
    elapsed_seconds: float
    exit_code: int


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """How it left one source; None where the run did not get to know."""

    source: str
    ok: bool
    last_backup_at: datetime | None = None  # aware UTC
    last_backup_bytes: int | None = None
    last_backup_seconds: float | None = None
    chain_length: int | None = None
    next_due: datetime | None = None  # aware UTC


def write(path: str, run: RunFigures, figures: Sequence[SourceFigures], sources: Sequence[str]) -> None:
    """Replace the file, readable for everybody; a reader sees the old one or the new one.

    Args:
        path: `metrics.textfile`.
        run: The run that ended.
        figures: What it found out, per source.
        sources: All configured sources: what an earlier run wrote of the others, or knew and this one did not, stays.

    Raises:
        B2sError: It cannot be written.
    """
    temporary = f"{path}.{os.getpid()}.tmp"  # not *.prom: the collector must not read it
    try:
        text = rendered(run, figures, sources, _read(path))
        _make_directory(os.path.dirname(path))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        _remove(temporary)  # of a run that was killed and had our pid
        try:
            with os.fdopen(os.open(temporary, flags, 0o644), "w", encoding="ascii") as file:
                file.write(text)
                os.fchmod(file.fileno(), 0o644)  # whatever the umask: the collector is another user
            os.rename(temporary, path)
        except BaseException:
            _remove(temporary)
            raise
    except OSError as error:
        raise B2sError(
            f"the metrics file {path} cannot be written: {error.strerror}", hint="check metrics.textfile"
        ) from error


def rendered(run: RunFigures, figures: Sequence[SourceFigures], sources: Sequence[str], earlier: str) -> str:
    """Return the content of the file: what this run knows, over what `earlier` says."""
    samples = {(name, source): value for name, source, value in _SAMPLE.findall(earlier) if name in SOURCE_METRICS}
    for each in figures:
        samples.update({(name, each.source): value for name, value in _samples(run, each)})
    values = {
        "b2s_last_run_timestamp_seconds": _number(run.ended_at.timestamp()),
        "b2s_last_run_duration_seconds": _number(run.elapsed_seconds),
        "b2s_last_run_exit_code": str(run.exit_code),
    }
    lines = []
    for name, meaning in RUN_METRICS.items():
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge", f"{name} {values[name]}"]
    for name, meaning in SOURCE_METRICS.items():
        found = [(source, samples[name, source]) for source in sources if (name, source) in samples]
        if found:
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge"]
            lines += [f'{name}{{source="{source}"}} {value}' for source, value in found]
    return "\n".join(lines) + "\n"


def _samples(run: RunFigures, each: SourceFigures) -> Iterator[tuple[str, str]]:
    now = run.ended_at.timestamp()
    yield "b2s_source_last_run_success", str(int(each.ok))
    if each.ok:
        yield "b2s_source_last_success_timestamp_seconds", _number(now)
    if each.last_backup_at is not None:
        yield "b2s_source_last_backup_timestamp_seconds", _number(each.last_backup_at.timestamp())
    if each.last_backup_bytes is not None:
        yield "b2s_source_last_backup_bytes", str(each.last_backup_bytes)
    if each.last_backup_seconds is not None:
        yield "b2s_source_last_backup_duration_seconds", _number(each.last_backup_seconds)
    if each.chain_length is not None:
        yield "b2s_source_chain_length", str(each.chain_length)
    if not each.ok:
        yield "b2s_source_next_due_timestamp_seconds", _number(now)
    elif each.next_due is not None:
        yield "b2s_source_next_due_timestamp_seconds", _number(each.next_due.timestamp())
    yield "b2s_source_overdue", str(int(not each.ok))


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(_FILE_BYTES_MAX)
    except FileNotFoundError:
        return ""


def _make_directory(path: str) -> None:
    """Make a missing directory in which the collector can look, whatever the umask."""
    if not os.path.isdir(path):
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o755)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
