"""Issue 3's first bar: twenty SIGKILLs of the supervisor, and nothing is uploaded twice but what was in flight."""

from __future__ import annotations

import random
import time

import pytest

from tests.fault.conftest import MakeRig
from tests.fault.harness import MIB, SEGMENT, Rig
from tests.fault.runs import Run
from tests.parts import workspace

CONCURRENCY = 3


def _random_moment(rig: Rig, run: Run, rng: random.Random) -> None:
    """Wait for a random moment: mostly while parts are under way, sometimes at any time since the start."""
    if rng.random() < 0.7:
        before = len(rig.proxy.history("UploadPart", key="/chunks/"))

        def under_way() -> bool:
            assert run.process.poll() is None, f"over before its kill: {run.tail()}"
            return len(rig.proxy.history("UploadPart", key="/chunks/")) > before

        workspace.poll(under_way, seconds=30, what="a part is stored")
        time.sleep(rng.uniform(0.0, 1.0))  # the fault's random moment, not a wait for anything
    else:
        time.sleep(rng.uniform(0.0, 3.0))


def killed_again_and_again(rig: Rig, kills: int, seed: int) -> None:
    """Kill the supervisor of one backup `kills` times, then let it finish; check every count."""
    rng = random.Random(seed)
    for _ in range(kills):
        run = rig.start()
        _random_moment(rig, run, rng)
        assert run.process.poll() is None, f"over before its kill: {run.tail()}"
        run.kill()
        assert rig.stored.manifests() == []
    rig.write_config(s3={"max_bandwidth": None})
    run = rig.run_clean()
    (metrics,) = run.named("backup_metrics")
    assert metrics["reused_bytes"] > 0
    workspace.poll(lambda: not rig.proxy.in_flight(), seconds=10, what="the proxy is idle")
    again = rig.part_bytes() - metrics["total_bytes"]
    assert again <= kills * CONCURRENCY * SEGMENT, f"{again} bytes were sent again"
    assert len(rig.stored.manifests()) == 1
    rig.check()


def test_killed_four_times(make_rig: MakeRig) -> None:
    """A sample of the twenty below."""
    rig = make_rig(data_bytes=64 * MIB, s3={"concurrency": CONCURRENCY, "max_bandwidth": 8 * MIB})
    killed_again_and_again(rig, 4, seed=31)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_twenty_times(make_rig: MakeRig) -> None:
    """SIGKILL at twenty random moments of one backup of many chunks."""
    rig = make_rig(
        data_bytes=200 * MIB, s3={"concurrency": CONCURRENCY, "max_bandwidth": 6 * MIB, "chunk_size": 4 * SEGMENT}
    )
    killed_again_and_again(rig, 20, seed=320)
