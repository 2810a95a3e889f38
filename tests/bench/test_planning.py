"""What planning costs, by the benchmark that anybody can run: `python -m scripts.bench.planning`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from scripts.bench.planning import measure

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let boto3 find credentials, and the server without a proxy."""
    for name, value in (("AWS_ACCESS_KEY_ID", "bench"), ("AWS_SECRET_ACCESS_KEY", "bench"), ("NO_PROXY", "127.0.0.1")):
        monkeypatch.setenv(name, value)


def test_one_list_for_each_source_that_is_due(tmp_path: Path) -> None:
    """From a warm state nothing is asked where nothing is due, and one LIST where something is."""
    idle = measure(tmp_path, 3, 60, timedelta(days=1))
    assert (idle["decisions"], idle["requests_per_source"]) == (["skip: not_due"], 0)
    due = measure(tmp_path, 3, 60, timedelta(days=8))
    assert (due["decisions"], due["requests_per_source"]) == (["incremental: interval"], 1)


@pytest.mark.long
def test_fifty_sources_of_five_hundred_backups_take_less_than_a_second(tmp_path: Path) -> None:
    """The bar: CPU of this process, boto3 and its client included."""
    for age in (timedelta(days=1), timedelta(days=8)):
        assert measure(tmp_path, 50, 500, age)["cpu_seconds"] < 1
