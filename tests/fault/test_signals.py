"""Stop signals at any time, and runs whose standard streams are gone (K08, K09)."""

from __future__ import annotations

import json
import random
import signal
import socket
import time

import psutil
import pytest

from tests.fault.conftest import MakeRig
from tests.fault.harness import MIB, SEGMENT, Rig
from tests.fault.runs import STOP_SIGNALS, Run, b2s_command
from tests.fault.test_kills import CHUNKS, held
from tests.parts import workspace

STOP_SECONDS_MAX = 10.0


def stopped(run: Run, number: int, seconds: float = STOP_SECONDS_MAX) -> None:
    """Send a stop signal; the run ends within `seconds` with the exit code of that signal, leaving no child."""
    descendants = run.descendants()
    run.send_signal(number)
    code = run.wait(seconds)
    run.assert_gone(descendants)
    if code == 0:
        return  # it was over before the signal came
    # Before the handlers are set (Python is still importing) the kernel's default applies: the same code in a shell.
    assert (128 - code if code < 0 else code) == STOP_SIGNALS[signal.Signals(number)], run.tail()
    if code > 0:
        assert run.last["event"] == "run_finished", run.tail()
        assert run.last["exit_code"] == code


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_stop_in_mid_send(make_rig: MakeRig, number: signal.Signals) -> None:
    """K08: parts under way get a moment, then it ends with the signal's code; the next run goes on."""
    rig = make_rig(data_bytes=22 * MIB, s3={"max_bandwidth": 8 * MIB})
    run = rig.start()
    run.wait_event("chunk_completed")
    stopped(run, number)
    assert run.process.returncode == STOP_SIGNALS[number]
    assert number.name in run.last["error"]
    rig.assert_nothing_runs()
    rig.write_config(s3={"max_bandwidth": None})
    assert rig.run_clean().wait_event("backup_resumed")["reused_bytes"] >= 2 * SEGMENT
    rig.check()


def test_second_signal_stops_at_once(make_rig: MakeRig) -> None:
    """K08: a second SIGINT does not wait for the parts under way."""
    rig = make_rig(data_bytes=22 * MIB)
    wait = held(rig, "UploadPart", CHUNKS, nth=2)
    run = rig.start()
    wait(run)
    run.send_signal(signal.SIGINT)
    time.sleep(0.5)  # the second one comes while the first is being obeyed
    assert run.process.poll() is None, "the parts under way got no moment"
    stopped(run, signal.SIGINT, seconds=2.0)
    rig.check()


def test_stop_while_the_fork_server_begins(make_rig: MakeRig) -> None:
    """K08: on a busy host the process that starts the others needs long to begin; a stop does not wait for it."""
    rig = make_rig(data_bytes=6 * MIB)
    run = rig.start()
    run.wait_event("send_started")
    found: list[psutil.Process] = []

    def begun() -> bool:
        found[:] = [server for server in [run.fork_server()] if server is not None]
        return bool(found)

    workspace.poll(begun, seconds=10, what="the fork server begins")
    found[0].suspend()
    run.send_signal(signal.SIGTERM)
    code = run.wait(STOP_SECONDS_MAX)
    found[0].resume()
    assert code == 143, run.tail()
    assert run.last["event"] == "run_finished"
    rig.check()


@pytest.mark.parametrize("event", ["run_started", "send_started"])
def test_stop_with_a_monitor_that_does_not_answer(make_rig: MakeRig, event: str) -> None:
    """K08: a ping URL that takes the call and says nothing holds up neither a stop at the start nor a later one."""
    rig = make_rig(data_bytes=22 * MIB, s3={"max_bandwidth": 8 * MIB})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        rig.write_config(notify={"ping_url": f"http://127.0.0.1:{silent.getsockname()[1]}/secret-id"})
        run = rig.start()
        workspace.poll(rig.lock_path.exists, seconds=20, what="the lock is taken")
        run.wait_event(event)
        stopped(run, signal.SIGTERM)
        assert run.process.returncode == 143
        rig.assert_nothing_runs()
    rig.write_config(notify={"ping_url": None}, s3={"max_bandwidth": None})
    rig.check()


def stop_at_random(rig: Rig, stops: int, seed: int) -> None:
    """Stop run after run of one backup at random times."""
    rng = random.Random(seed)
    for _ in range(stops):
        run = rig.start()
        time.sleep(rng.uniform(0.0, 3.0))  # the fault's random moment, not a wait for anything
        stopped(run, rng.choice(list(STOP_SIGNALS)))
        rig.assert_nothing_runs()


def test_stops_at_random(make_rig: MakeRig) -> None:
    """K08: a sample of the twenty below."""
    rig = make_rig(data_bytes=32 * MIB, s3={"max_bandwidth": 8 * MIB})
    stop_at_random(rig, 4, seed=8)
    rig.write_config(s3={"max_bandwidth": None})
    rig.check()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_twenty_stops_at_random(make_rig: MakeRig) -> None:
    """K08: SIGTERM, SIGINT or SIGHUP at twenty random times of one backup."""
    rig = make_rig(data_bytes=64 * MIB, s3={"max_bandwidth": 4 * MIB})
    stop_at_random(rig, 20, seed=20)
    rig.write_config(s3={"max_bandwidth": None})
    rig.check()


CLOSED = {
    "stdout closed": 'exec "$@" >&-',
    "stderr closed": 'exec "$@" 2>&-',
    "both closed": 'exec "$@" >&- 2>&- <&-',
    "reader gone": '{ "$@"; echo $? > "$STATUS"; } 2>&1 | head -c 1 >/dev/null; exit "$(cat "$STATUS")"',
    "disk full": 'exec "$@" >/dev/full 2>&1',
}


@pytest.mark.parametrize("how", CLOSED)
def test_standard_streams_gone(make_rig: MakeRig, how: str) -> None:
    """K09: a run that nobody listens to does its work all the same; the log file has all of it."""
    rig = make_rig(data_bytes=6 * MIB)
    log = rig.directory / "b2s.log"
    rig.write_config(log={"file": str(log)})
    words = b2s_command("backup", "--config", str(rig.config))
    run = Run(
        ["sh", "-c", CLOSED[how], "sh", *words],
        {**rig.environment, "STATUS": str(rig.directory / "status")},
        rig.directory / "closed.log",
    )
    rig.runs.append(run)
    assert run.wait() == 0, log.read_text()[-3000:]
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("run_finished", 0)
    rig.write_config(log={"file": None})
    rig.check()
