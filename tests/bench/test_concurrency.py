"""What concurrency is for: a store that takes its time over every part."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.system.commands import REPOSITORY

RATIO_MIN = 6.0  # of the time with one uploader to the time with eight


@pytest.mark.root
@pytest.mark.long
@pytest.mark.timeout(300)
def test_eight_uploaders_wait_at_the_same_time() -> None:
    """Where every part is held for 200 ms, eight uploaders are at least six times as fast as one."""
    command = [sys.executable, "-m", "scripts.bench.concurrency", "--hold", "0.2", "1", "8"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=280)
    ratio = re.search(r"^ratio ([0-9.]+) ", done.stdout, flags=re.MULTILINE)
    assert ratio is not None
    assert float(ratio[1]) >= RATIO_MIN, done.stdout
