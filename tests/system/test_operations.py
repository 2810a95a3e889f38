"""What operators build on: log lines, metrics, pings, priorities, and what a person sees on a terminal."""

from __future__ import annotations

import json
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from b2s.core import events
from tests.adapters.test_notify import Listener, listener
from tests.parts.servers import CANARY_SECRET
from tests.parts.tree import change_tree, nasty_tree
from tests.system import terminal
from tests.system.site import MIB, SOURCE, MakeSite, Site

__all__ = ["listener"]
ROOT = Path(__file__).parents[2]
INDENT = 17  # of a log line's second line: below its event
SCHEMA = jsonschema.Draft202012Validator(json.loads((ROOT / "docs/log-schema.json").read_text()))


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A host with some data."""
    made = make_site(segment_size="5MiB", chunk_size="10MiB")
    nasty_tree(made.source, size_bytes=22 * MIB)
    return made


def check_lines(lines: list[dict[str, Any]]) -> None:
    """Assert that every line fits the schema."""
    for line in lines:
        SCHEMA.validate(line)


def test_the_schema_knows_every_event() -> None:
    """docs/log-schema.json and core/events.py have the same names."""
    exist = {value for name, value in vars(events).items() if name.isupper() and isinstance(value, str)}
    assert set(SCHEMA.schema["properties"]["event"]["enum"]) == exist


def test_every_line_fits_the_schema(site: Site) -> None:
    """Backups, a dry run, failures, a restore and a check: every line of stderr validates."""
    config = site.configured()
    check_lines(site.backup().events)
    change_tree(site.source, seed=1)
    check_lines(site.backup("--once").events)
    check_lines(site.backup().events)
    check_lines(site.backup("--dry-run").events)
    check_lines(site.backup("--no-s3").events)
    target = site.filesystem.path / "out"
    check_lines(site.b2s.succeed("restore", *site.where(), "--source", SOURCE, "--target", target).events)
    check_lines(site.b2s.succeed("verify", *site.where(), "--data").events)
    for arguments in (["restore", *site.where(), "--source", "nobody", "--target", str(target) + "2"], ["nonsense"]):
        done = site.b2s.call(*arguments)
        assert done.exit_code != 0
        check_lines(done.events)
    first_chunk = site.manifests()[0]["chunks"][0]["key"]
    site.client.delete_object(Bucket=site.bucket, Key=f"hosts/site/{SOURCE}/{first_chunk}")
    done = site.b2s.call("verify", *config)
    assert done.exit_code == 4
    check_lines(done.events)


def test_metrics_and_pings(site: Site, listener: Listener) -> None:
    """Start and end are pinged, the file tells of the backup; a failure is told by both, and no secret is."""
    textfile = site.directory / "metrics" / "b2s.prom"
    site.settings["metrics"] = {"textfile": str(textfile)}
    site.settings["notify"] = {"ping_url": f"{listener.origin}/uuid"}
    site.b2s.environment["NO_PROXY"] = "127.0.0.1"
    done = site.backup()
    total = done.event("backup_metrics")["total_bytes"]
    assert [target for _, target, _ in listener.calls] == ["/uuid/start", "/uuid"]
    assert f'b2s_source_last_backup_bytes{{source="data"}} {total}\n' in textfile.read_text()
    assert 'b2s_source_chain_length{source="data"} 1\n' in textfile.read_text()
    site.settings["s3"]["bucket"] = "there-is-no-such-bucket"
    failed = site.b2s.call("backup", "--once", *site.configured())
    assert failed.exit_code == 1
    assert listener.calls[-1][1] == "/uuid/fail"
    assert "there-is-no-such-bucket" in listener.calls[-1][2]
    assert "b2s_last_run_exit_code 1\n" in textfile.read_text()
    assert 'b2s_source_overdue{source="data"} 1\n' in textfile.read_text()
    assert CANARY_SECRET not in textfile.read_text() + repr(listener.calls)
    site.b2s.call("backup", "--dry-run", *site.configured())
    assert len(listener.calls) == 4


def test_a_dead_ping_url_and_an_unwritable_file_fail_nothing(site: Site) -> None:
    """The backup is made; the log warns."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    site.settings["notify"] = {"ping_url": f"http://127.0.0.1:{port}/uuid"}
    site.settings["metrics"] = {"textfile": "/proc/nothing/b2s.prom"}
    done = site.backup()
    assert [event["signal"] for event in done.events if event["event"] == "ping_failed"] == ["start", "success"]
    assert done.event("metrics_failed")["level"] == "warning"
    check_lines(done.events)
    assert len(site.manifests()) == 1


def test_systemd_hears_how_far_it_is(site: Site) -> None:
    """READY, a status with bytes, and the end; and with journald's stderr the log stays JSON."""
    path = site.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.settimeout(5)
        site.backup(environment={"NOTIFY_SOCKET": str(path)})
        said = []
        while not said or not said[-1].startswith("STOPPING"):
            said.append(listening.recv(4096).decode())
    assert said[0].startswith("READY=1")
    assert any(f"STATUS={SOURCE}: full" in message for message in said)
    assert said[-1] == "STOPPING=1\nSTATUS=ended with exit code 0"


def test_priorities_reach_every_process(site: Site) -> None:
    """process.nice and process.ionice hold for the supervisor, its children and `btrfs send`."""
    seen = site.directory / "seen"
    fake = site.directory / "bin"
    fake.mkdir()
    script = fake / "btrfs"
    script.write_text(f'#!/bin/sh\n[ "$1" = send ] && {{ nice; ionice; }} >{seen}\nexec /usr/bin/btrfs "$@"\n')
    script.chmod(0o755)
    site.settings["process"] = {"nice": 7, "ionice": "best-effort:6"}
    site.backup(environment={"PATH": f"{fake}:/usr/bin:/bin"})
    assert seen.read_text().split() == ["7", "best-effort:", "prio", "6"]


def test_runs_with_what_the_unit_leaves_it(site: Site) -> None:
    """The capabilities that b2s.service keeps are enough for a backup."""
    unit = (ROOT / "scripts/systemd/b2s.service").read_text()
    (kept,) = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("CapabilityBoundingSet=")]
    names = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in kept.split())
    command = ["setpriv", f"--bounding-set=-all,{names}", "--no-new-privs", sys.executable, "-m", "b2s", "backup"]
    done = subprocess.run(
        [*command, *site.configured()],
        env=site.b2s.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(site.manifests()) == 1


def test_nothing_due_needs_neither_the_bucket_nor_its_library(site: Site) -> None:
    """Once it knows what is there, a run that finds nothing due imports no boto3 and sends nothing."""
    site.backup()
    site.backup()
    code = (
        "import sys; from b2s.cli.main import run; code = run(sys.argv[1:]);"
        "bad = {'boto3', 'botocore', 'rich', 'tenacity', 'urllib.request', 'multiprocessing'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else code)"
    )
    hooks = ("COVERAGE_", "AWS_")  # being measured takes modules too
    environment = {name: value for name, value in site.b2s.environment.items() if not name.startswith(hooks)}
    done = subprocess.run(
        [sys.executable, "-c", code, "backup", *site.configured()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"reason":"not_due"' in done.stderr


def test_nothing_due_costs_half_a_second_of_cpu_at_most(site: Site) -> None:
    """The bar, for cron that calls every few minutes; the best of three, for the machine may have other work."""
    site.backup()
    hooks = ("COVERAGE_", "AWS_")
    environment = {name: value for name, value in site.b2s.environment.items() if not name.startswith(hooks)}
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "b2s", "backup", *site.configured()]
        subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, timeout=60, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5


def test_a_person_sees_progress(site: Site) -> None:
    """A live line with amount and spool, log lines whole above it, nothing of it left at the end, nothing too wide."""
    site.settings["s3"]["max_bandwidth"] = "8MiB"
    seen = terminal.call(site.b2s.environment, "backup", *site.configured(), width=100)
    assert seen.exit_code == 0, seen.raw[-3000:]
    assert any("MiB of at most about" in line and "spool" in line for line in seen.live)
    assert all(len(line) < seen.width for line in seen.live)
    assert "\x1b[?25h" in seen.raw
    logged = [line for line in seen.lines if line.strip()]
    assert all(line[:8].count(":") == 2 or line[:INDENT].isspace() for line in logged), "mixed with the live line"
    assert any("manifest_committed" in line for line in logged)
    assert not any("at most about" in line for line in logged)


def test_no_color_and_dumb_terminals_are_respected(site: Site) -> None:
    """NO_COLOR: no colour codes, also in the live line; TERM=dumb: no live line."""
    plain = terminal.call({**site.b2s.environment, "NO_COLOR": "1"}, "backup", *site.configured())
    assert plain.exit_code == 0
    assert plain.live
    assert "\x1b[3" not in plain.raw
    dumb = terminal.call({**site.b2s.environment, "TERM": "dumb"}, "backup", "--once", *site.configured())
    assert dumb.exit_code == 0
    assert not dumb.live


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_first_day_reads_well(site: Site, width: int) -> None:
    """From doctor to verify: lines fit, words and ids are whole, and nothing looks like a program's insides."""
    target = site.filesystem.path / "out"
    config = site.configured()
    day: dict[str, list[str]] = {}
    live: dict[str, list[str]] = {}
    for name, *arguments in (
        ("config", "check"),
        ("doctor",),
        ("plan",),
        ("status",),
        ("backup",),
        ("status",),
        ("list",),
        ("backup",),
        ("restore", "--source", SOURCE, "--target", str(target)),
        ("verify",),
    ):
        seen = terminal.call(site.b2s.environment, name, *arguments, *config, width=width)
        assert seen.exit_code == 0, seen.raw[-2000:]
        day[name], live[name] = [line for line in seen.lines if line], [line for line in seen.live if line]
        for line in seen.lines:
            longest = max(map(len, line.split()), default=0)  # a path that is wider than the terminal stays whole
            assert len(line) <= max(width, INDENT + longest), (name, line)
            assert not re.search(r"[{}\\]|Traceback|(?<![\w-])(None|True|False)\b", line), (name, line)
    (backup_id,) = [manifest["backup_id"] for manifest in site.manifests()]
    for name in ("list", "restore"):
        assert any(backup_id in line.split() for line in day[name]), name
    assert width == 60 or day["list"][1].split() == ["no.", "created", "size", "class", "backup"]
    aged = re.compile(r"data +\d{4}-\d\d-\d\d \d\d:\d\d +\d+s +\d{4}-")
    assert width == 60 or any(aged.match(line) for line in day["status"])
    assert re.fullmatch(r"\d+ findings: 0 problems, 1 warning", day["doctor"][-1])
    assert any("not_due" in line for line in day["backup"])
    assert any(line.startswith("verified: content equal") for line in day["restore"])
    assert any(line.startswith("data: restore") for line in live["restore"])
    assert any(line.startswith("data: verify  ") for line in live["verify"])
    assert all(len(line) < width for lines in live.values() for line in lines)


def test_a_person_is_told_of_an_error_in_a_sentence(site: Site) -> None:
    """On a terminal a failure ends with one error line and one hint line, and no trace."""
    site.settings["s3"]["bucket"] = "there-is-no-such-bucket"
    seen = terminal.call(site.b2s.environment, "backup", *site.configured())
    assert seen.exit_code == 1
    lines = [line for line in seen.lines if line.startswith(("error:", "hint:"))]
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    assert " ".join(seen.raw.split()).count("bucket there-is-no-such-bucket does not exist") == 2, "event and error"
    assert "Traceback" not in seen.raw
