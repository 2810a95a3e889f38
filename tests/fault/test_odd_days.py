"""Beside the main road: a killed measurement, a snapshot directory that cannot be, what is told afterwards."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.fault.conftest import MakeRig
from tests.fault.harness import MIB, SEGMENT, Rig
from tests.parts.faults import Respond


def test_killed_measurement_is_no_backup_to_go_on_with(make_rig: MakeRig) -> None:
    """`backup --no-s3` that was killed leaves nothing to resume: else a source that is not due would get a full."""
    rig = make_rig(data_bytes=12 * MIB)
    rig.run_clean()
    run = rig.start("--no-s3")
    run.child("chunker")
    run.kill()
    again = rig.run_clean()
    assert [event["reason"] for event in again.named("plan_decided")] == ["not_due"]
    rig.check()
    assert len(rig.stored.manifests()) == 1


def test_snapshot_directory_that_cannot_be_made(make_rig: MakeRig, tmp_path: Path) -> None:
    """It fails its own source alone, by a sentence and a hint; `b2s status` tells it until it is over."""
    rig = make_rig(data_bytes=1 * MIB)
    (tmp_path / "file").write_text("no directory")
    other = rig.filesystem.subvolume("other")
    good = rig.settings["sources"]
    bad = {"name": "bad", "path": str(other), "snapshots": {"base_dir": str(tmp_path / "file/snapshots")}}
    rig.write_config(sources=good)
    rig.run_clean()  # the state is there from now on
    rig.write_config(sources=[bad, *good])
    failed = rig.run("--once")
    assert failed.process.returncode == 1
    assert [result["ok"] for result in failed.last["results"]] == [False, True]
    assert "cannot be made" in failed.last["error"]
    assert "trace" not in failed.last
    assert failed.last["hint"]
    assert "cannot be made" in _status(rig, "bad")["last_error"]
    assert _status(rig, "data")["last_error"] is None
    rig.write_config(sources=[{"name": "bad", "path": str(other)}, *good])
    rig.run_clean()
    assert _status(rig, "bad")["last_error"] is None


def test_error_of_a_source_that_is_not_due_again_is_forgotten(make_rig: MakeRig) -> None:
    """A source that was not there for a day, and has nothing due when it is back, has no last error any more."""
    rig = make_rig(data_bytes=1 * MIB)
    rig.run_clean()
    away = rig.source.with_name("away")
    rig.source.rename(away)
    assert rig.run().process.returncode == 1
    assert "does not exist" in _status(rig, "data")["last_error"]
    away.rename(rig.source)
    rig.run_clean()
    assert _status(rig, "data")["last_error"] is None


def test_results_name_the_backup_that_was_resumed(make_rig: MakeRig) -> None:
    """A run that finished an interrupted backup says so at its end, not that nothing was due."""
    rig = make_rig(data_bytes=12 * MIB)
    run = rig.start()
    run.wait_event("send_started")
    run.kill()
    again = rig.run_clean()
    (committed,) = again.named("manifest_committed")
    (result,) = again.last["results"]
    assert (result["action"], result["reason"], result["backup_id"]) == (
        "resume",
        "interrupted",
        committed["backup_id"],
    )


def test_bytes_of_small_segments_are_counted(make_rig: MakeRig) -> None:
    """What a restore downloaded is the whole stream, also where its last bytes came in no time."""
    rig = make_rig(data_bytes=1 * MIB)
    rig.run_clean()
    target = rig.filesystem.path / "restored"
    run = rig.run("--source", "data", "--target", str(target), command="restore")
    assert run.process.returncode == 0, run.tail()
    (metrics,) = run.named("restore_metrics")
    assert metrics["downloaded_bytes"] == metrics["total_bytes"] > MIB


def test_doctor_tells_of_what_nobody_goes_on_with(make_rig: MakeRig) -> None:
    """An interrupted backup to a prefix that is in the config no more pins its snapshot: doctor names it."""
    rig = make_rig(data_bytes=12 * MIB)
    run = rig.start()
    run.wait_event("send_started")
    run.kill()
    assert _findings(rig, "interrupted") == []
    prefix = rig.settings["s3"]["prefix"]
    rig.write_config(s3={"prefix": f"{prefix}-new"})
    (finding,) = _findings(rig, "interrupted")
    assert finding["level"] == "warning"
    assert prefix in finding["detail"]
    rig.write_config(s3={"prefix": prefix})
    rig.check()


def test_doctor_sees_a_state_that_stops_every_run(make_rig: MakeRig) -> None:
    """A directory in the place of the state file ends every backup, so it is a problem for doctor too."""
    rig = make_rig(data_bytes=1 * MIB)
    rig.state_path.parent.mkdir(mode=0o700)
    rig.state_path.mkdir()
    assert rig.run().process.returncode == 1
    (finding,) = _findings(rig, "state")
    assert finding["level"] == "problem"
    rig.state_path.rmdir()
    rig.check()


def test_list_says_that_there_is_nothing(make_rig: MakeRig) -> None:
    """A prefix that is spelled wrong gives more than an empty table: that is how the worst day begins."""
    rig = make_rig(data_bytes=1 * MIB)
    run = rig.run(command="list")
    assert run.process.returncode == 0
    assert f"no backup under {rig.bucket}/{rig.prefix}" in run.output.read_text()


def test_spool_smaller_than_an_interrupted_segment(make_rig: MakeRig) -> None:
    """What began with larger segments than the spool holds today ends by a hint that helps, not every night anew."""
    rig = make_rig(data_bytes=32 * MIB, s3={"segment_size": 2 * SEGMENT, "chunk_size": 2 * SEGMENT})
    run = rig.start()
    run.wait_event("send_started")
    run.kill()
    rig.write_config(s3={"segment_size": SEGMENT}, spool={"size": SEGMENT + MIB})
    failed = rig.run()
    assert failed.process.returncode == 2
    assert "--fresh" in failed.last["hint"]
    rig.run_clean("--fresh")
    rig.check(unreferenced=True)


def test_a_source_that_cannot_be_planned_hides_no_other(make_rig: MakeRig) -> None:
    """Its manifests may not be read: `plan` and the dry run name the cause, show the others, and exit 1."""
    rig = make_rig(data_bytes=1 * MIB)
    other = rig.filesystem.subvolume("other")
    rig.write_config(sources=[{"name": "bad", "path": str(other)}, *rig.settings["sources"]])
    rig.run_clean()
    rig.state_path.unlink()
    rig.proxy.rule("GetObject", Respond(403, "AccessDenied"), times=None, key="/bad/manifests/")
    plan = rig.run("--json", command="plan")
    rig.assert_failed(plan)
    document = json.loads(plan.output.read_text())
    assert [(each["source"], each["reason"]) for each in document["actions"]] == [("data", "not_due")]
    assert [each["source"] for each in document["errors"]] == ["bad"]
    assert "s3:GetObject" in document["errors"][0]["error"] + document["errors"][0]["hint"]
    dry = rig.run("--dry-run")
    rig.assert_failed(dry)
    shown = dry.output.read_text()
    assert "not_due" in shown
    assert "note: source bad cannot be planned: " in shown


def test_all_sources_show_one_moment(make_rig: MakeRig) -> None:
    """Every due source is snapshotted before the first is sent, within seconds, also where one of them is missing."""
    rig = make_rig(data_bytes=6 * MIB)
    more = [{"name": name, "path": str(rig.filesystem.subvolume(name))} for name in ("b", "c")]
    gone = {"name": "gone", "path": str(rig.filesystem.path / "gone")}
    rig.write_config(sources=[rig.settings["sources"][0], gone, *more])
    run = rig.run()
    rig.assert_failed(run)
    names = [event["event"] for event in run.events()]
    assert names.count("snapshot_created") == names.count("manifest_committed") == 3
    first_sent = names.index("send_started")
    assert "snapshot_created" not in names[first_sent:]
    moments = [datetime.fromisoformat(event["timestamp"]) for event in run.named("snapshot_created")]
    assert (max(moments) - min(moments)).total_seconds() < 5


def test_status_does_not_wait_for_a_dead_line(make_rig: MakeRig) -> None:
    """Without a state the bucket is asked; when it is silent, status says so in seconds, whatever `retry_for` is."""
    rig = make_rig(data_bytes=1 * MIB)
    others = [{"name": f"other-{number}", "path": str(rig.filesystem.subvolume(f"{number}"))} for number in range(4)]
    rig.write_config(sources=[*rig.settings["sources"], *others], s3={"retry_for": "30m"})
    rig.proxy.refusing = True
    run = rig.run("--check", "--json", command="status", seconds=40)
    rig.assert_failed(run)
    document = json.loads(run.output.read_text())
    assert [each["overdue"] for each in document["sources"]] == [True] * 5
    assert all("127.0.0.1" in each["last_error"] for each in document["sources"])


def _findings(rig: Rig, check: str) -> list[dict[str, Any]]:
    run = rig.run("--json", command="doctor")
    return [each for each in json.loads(run.output.read_text())["findings"] if each["check"] == check]


def _status(rig: Rig, source: str) -> dict[str, Any]:
    run = rig.run("--json", command="status")
    (found,) = (each for each in json.loads(run.output.read_text())["sources"] if each["source"] == source)
    return dict(found)
