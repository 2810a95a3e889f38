"""The metrics file: whole, readable, and honest about what is not known."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from b2s.adapters import metrics_textfile
from b2s.adapters.metrics_textfile import RUN_METRICS, SOURCE_METRICS, RunFigures, SourceFigures
from b2s.errors import B2sError

NOW = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
RUN = RunFigures(NOW, 12.5, 0)
BACKED_UP_AT = datetime(2026, 11, 21, tzinfo=UTC)
MADE = SourceFigures("data", True, BACKED_UP_AT, 4096, 60.0, 3, datetime(2026, 11, 28, tzinfo=UTC))


def samples(path: Path) -> dict[str, float]:
    """Parse the file as the collector does: every line a comment or a sample."""
    found = {}
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP \w+ .+|TYPE \w+ gauge)", line)
            continue
        name, _, value = line.rpartition(" ")
        assert re.fullmatch(r'\w+(\{source="[\w.-]+"\})?', name)
        found[name] = float(value)
    return found


def test_says_all_there_is(tmp_path: Path) -> None:
    """Every documented metric is written for a source that was backed up."""
    path = tmp_path / "b2s.prom"
    metrics_textfile.write(str(path), RUN, [MADE], ["data"])
    found = samples(path)
    assert set(found) == set(RUN_METRICS) | {f'{name}{{source="data"}}' for name in SOURCE_METRICS}
    assert found["b2s_last_run_duration_seconds"] == 12.5
    assert found['b2s_source_last_backup_bytes{source="data"}'] == 4096
    assert found['b2s_source_last_backup_timestamp_seconds{source="data"}'] == BACKED_UP_AT.timestamp()
    assert found['b2s_source_overdue{source="data"}'] == 0


def test_a_failure_keeps_the_last_success(tmp_path: Path) -> None:
    """What an earlier run knew stays: of this source when it fails, of another one that was not looked at."""
    path = tmp_path / "b2s.prom"
    other = SourceFigures("other", True, chain_length=7)
    metrics_textfile.write(str(path), RUN, [MADE, other], ["data", "other"])
    later = RunFigures(datetime(2026, 11, 30, tzinfo=UTC), 1.0, 1)
    metrics_textfile.write(str(path), later, [SourceFigures("data", False)], ["data", "other"])
    found = samples(path)
    assert found["b2s_last_run_exit_code"] == 1
    assert found['b2s_source_last_success_timestamp_seconds{source="data"}'] == NOW.timestamp()
    assert found['b2s_source_last_backup_bytes{source="data"}'] == 4096
    assert found['b2s_source_overdue{source="data"}'] == 1
    assert found['b2s_source_next_due_timestamp_seconds{source="data"}'] == later.ended_at.timestamp()
    assert found['b2s_source_chain_length{source="other"}'] == 7


def test_a_source_that_left_the_config_leaves_the_file(tmp_path: Path) -> None:
    """Nobody is told of a source that is not backed up any more."""
    path = tmp_path / "b2s.prom"
    metrics_textfile.write(str(path), RUN, [MADE], ["data"])
    metrics_textfile.write(str(path), RUN, [], ["other"])
    assert set(samples(path)) == set(RUN_METRICS)


def test_readable_whatever_the_umask_and_replaced_as_a_whole(tmp_path: Path) -> None:
    """The collector is another user; a symbolic link is replaced, not followed; nothing else is left."""
    path = tmp_path / "b2s.prom"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)
    before = os.umask(0o077)
    try:
        metrics_textfile.write(str(path), RUN, [MADE], ["data"])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
    assert victim.read_text() == "precious"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["b2s.prom", "victim"]


def test_a_missing_directory_is_made_for_the_collector(tmp_path: Path) -> None:
    """It can be entered by another user, also where the umask is that of b2s.service."""
    directory = tmp_path / "new" / "textfile"
    before = os.umask(0o077)
    try:
        metrics_textfile.write(str(directory / "b2s.prom"), RUN, [MADE], ["data"])
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o755


def test_says_why_it_cannot_be_written(tmp_path: Path) -> None:
    """A path below a file is named in the error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(B2sError, match="cannot be written"):
        metrics_textfile.write(str(tmp_path / "file" / "b2s.prom"), RUN, [MADE], ["data"])
