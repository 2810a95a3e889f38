"""The command line: exit codes, last words, and streams that are closed."""

from __future__ import annotations

import json
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from b2s.adapters import config_file
from b2s.cli import main as cli_main
from b2s.cli import options
from b2s.cli.invocation import Invocation, exit_code_of
from b2s.errors import B2sError, LockHeld, Stopped, UsageError

GOOD = "sources: [{name: data, path: /srv/data}]\ns3: {bucket: my-backups}\n"
CPU_SECONDS_MAX = 0.6  # of `b2s --help`, three times what it takes, since machines differ


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return a good config file."""
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    return path


def run(*arguments: str, stderr: Any = subprocess.PIPE, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run b2s as a process of its own, with stderr no terminal."""
    return subprocess.run(
        [sys.executable, "-m", "b2s", *arguments],
        stdout=more.pop("stdout", subprocess.PIPE),
        stderr=stderr,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


def last_event(stderr: str) -> dict[str, Any]:
    """Return the last line of a log in which every line is JSON."""
    events: list[dict[str, Any]] = [json.loads(line) for line in stderr.splitlines()]
    return events[-1]


def test_help_lists_every_command_cheaply() -> None:
    """`--help` names all commands and imports nothing heavy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert done.stderr == ""
    for name in ("backup", "plan", "list", "restore", "verify", "status", "doctor", "config"):
        assert f"\n  {name} " in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < CPU_SECONDS_MAX


def test_help_imports_nothing_heavy() -> None:
    """boto3, pydantic, structlog, rich and ruamel.yaml wait until a command needs them."""
    code = (
        "import sys; from b2s.cli.main import run; run(['--help']);"
        "bad = {'boto3', 'botocore', 'pydantic', 'structlog', 'rich', 'ruamel'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["backup", "plan", "list", "status", "config"])
def test_every_command_has_the_global_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Help works without a config and shows the global options with each command."""
    assert cli_main.run([name, "--help"]) == 0
    shown = capsys.readouterr()
    assert all(option in shown.out for option in ("--config", "--log-level", "--log-format"))
    assert shown.err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints one line."""
    assert cli_main.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("b2s ")


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_global_options_stand_anywhere(place: str, config: Path) -> None:
    """`--config` counts before and after the command's name, and from the environment."""
    option = ["--config", str(config), "--log-level=error"]
    arguments = {"before": [*option, "config", "show"], "after": ["config", "show", *option]}
    done = run(*arguments.get(place, ["config", "show"]), env={**os.environ, "B2S_CONFIG": str(config)})
    assert done.returncode == 0
    assert "bucket: my-backups" in done.stdout
    assert (done.stderr == "") is (place != "environment")


def test_the_later_option_wins(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What stands after the command's name overrides what stands before it."""
    assert cli_main.run(["--config", "/nonexistent", "config", "check", "--config", str(config)]) == 0
    assert capsys.readouterr().out.startswith(f"{config}: ok\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["backp"],
        ["backup", "--bogus"],
        ["config"],
        ["--log-level", "loud", "plan"],
        ["backup", "--dry-run", "--no-s3"],
        ["list", "--prefix", "a"],
        ["list", "--bucket", "s3://x"],
    ],
)
def test_usage_errors_are_one_json_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal a wrong command line is a last event with error and hint, and exit 2."""
    assert cli_main.run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    event = last_event(shown.err)
    assert len(shown.err.splitlines()) == 1
    assert event["event"] == "run_finished"
    assert event["exit_code"] == 2
    assert event["error"]


@pytest.mark.parametrize("arguments", [["backp"], ["config", "check", "--config", "/nonexistent"], ["plan", "--x"]])
def test_for_people_a_failure_is_error_and_hint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the console format there is an error line and a hint line, nothing else."""
    assert cli_main.run([*arguments, "--log-format=console"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"]


def test_on_a_terminal_errors_are_for_people() -> None:
    """`auto` looks at what stderr is."""
    ours, theirs = pty.openpty()
    done = run("backp", stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert done.returncode == 2
    assert shown.startswith("error: No such command 'backp'")


def test_json_log_begins_and_ends_with_the_run(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """run_started is first and run_finished is last, with the same run_id."""
    assert cli_main.run(["config", "check", "--config", str(config)]) == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["run_started", "run_finished"]
    assert len({event["run_id"] for event in events}) == 1
    assert events[-1]["exit_code"] == 0


def test_a_log_file_gets_the_events_and_stderr_the_failure(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With log.file stderr stays empty on success; a failing run still tells stderr why, so that cron mails it."""
    log = tmp_path / "b2s.log"
    config.write_text(GOOD + f"log: {{file: {log}}}\n")
    assert cli_main.run(["config", "check", "--config", str(config)]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(config_file, "dump_effective", _fail)
    assert cli_main.run(["config", "show", "--config", str(config)]) == 1
    assert last_event(capsys.readouterr().err)["error"] == "it failed"
    assert last_event(log.read_text())["error"] == "it failed"


def _fail(*_args: object) -> None:
    raise B2sError("it failed", hint="mend it", key="value")


def _bug(*_args: object) -> None:
    raise RuntimeError("wJalrXUtnFEMI-CANARY")


def _interrupt(*_args: object) -> None:
    raise KeyboardInterrupt


def test_known_failures_carry_hint_and_context(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """error, hint and context of a B2sError are fields of the last event."""
    monkeypatch.setattr(config_file, "dump_effective", _fail)
    assert cli_main.run(["config", "show", "--config", str(config)]) == 1
    event = last_event(capsys.readouterr().err)
    assert (event["error"], event["hint"], event["context"]) == ("it failed", "mend it", {"key": "value"})


@pytest.mark.parametrize("form", ["json", "console"])
def test_bugs_keep_their_trace_without_secrets(
    form: str, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is exit 1 with a trace, in JSON within the last event."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI-CANARY")
    monkeypatch.setattr(config_file, "dump_effective", _bug)
    assert cli_main.run(["config", "show", "--config", str(config), "--log-format", form]) == 1
    text = capsys.readouterr().err
    assert "CANARY" not in text
    if form == "json":
        assert "Traceback" in last_event(text)["trace"]
    else:
        assert "Traceback" in text
        assert text.splitlines()[-2].startswith("error: unexpected RuntimeError")


def test_ctrl_c_is_130(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt outside a command's own handling ends in 130 and a last event, nothing else on stderr."""
    monkeypatch.setattr(config_file, "dump_effective", _interrupt)
    assert cli_main.run(["config", "show", "--config", str(config)]) == 130
    assert last_event(capsys.readouterr().err)["exit_code"] == 130


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (B2sError("x"), 1),
        (UsageError("x"), 2),
        (LockHeld("x"), 3),
        (Stopped("x", signal_number=1), 129),
        (Stopped("x", signal_number=15), 143),
    ],
)
def test_exit_codes(error: B2sError, code: int) -> None:
    """Each error has the exit code of the contract."""
    assert exit_code_of(error) == code


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`b2s config schema | head -1` ends quietly with exit 0."""
    reader, writer = os.pipe()
    os.close(reader)
    done = run("config", "schema", stdout=writer)
    os.close(writer)
    assert done.returncode == 0
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["run_started", "run_finished"]


def test_a_full_disk_behind_stdout_is_a_failure() -> None:
    """A result that could not be written is not a success."""
    with open("/dev/full", "w") as full:
        done = run("config", "schema", stdout=full)
    assert done.returncode == 1
    assert "No space left" in last_event(done.stderr)["error"]


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_survived(closed: str, config: Path) -> None:
    """Whatever of stdin, stdout and stderr is closed, the exit code is right and no file takes their number."""
    log = config.with_name("b2s.log")
    config.write_text(GOOD + f"log: {{file: {log}}}\n")
    for command, code in (("config show", 0), ("config bogus", 2)):
        shell = f'exec "{sys.executable}" -m b2s {command} --config "{config}" {closed}'
        done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
    assert {json.loads(line)["event"] for line in log.read_text().splitlines()} == {"run_started", "run_finished"}


def test_cron_environment_is_enough(config: Path) -> None:
    """LANG=C, a short PATH and no HOME do, also with names that are not ASCII."""
    config.write_text(GOOD.replace("/srv/data", "/srv/dätä"), encoding="utf-8")
    environment = {"LANG": "C", "LC_ALL": "C", "PATH": "/usr/bin:/bin", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    for command in ("check", "show"):
        done = run("config", command, "--config", str(config), env=environment, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr


def test_bucket_options_need_no_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line alone names a bucket; without it the config file does."""
    monkeypatch.delenv("B2S_CONFIG", raising=False)
    invocation = Invocation()
    given = options.StoreOptions("my-backups", "hosts/web1", None, "http://localhost:9000/", None)
    choice = options.store_from(invocation, given)
    assert choice.settings is None
    assert (choice.s3.bucket, choice.s3.prefix, choice.s3.endpoint_url) == (
        "my-backups",
        "hosts/web1",
        "http://localhost:9000",
    )


def test_store_from_the_config_file(config: Path) -> None:
    """Without `--bucket` the settings of the file are used."""
    invocation = Invocation()
    invocation.options.config = str(config)
    choice = options.store_from(invocation, options.StoreOptions(None, None, None, None, None))
    assert choice.settings is not None
    assert choice.s3.bucket == "my-backups"


def test_unknown_sources_are_named(config: Path) -> None:
    """`--source` with a name that is not in the file is a usage error which lists the names."""
    settings = config_file.load(config, check_host=False)
    assert [source.name for source in options.chosen_sources(settings, ())] == ["data"]
    with pytest.raises(UsageError) as raised:
        options.chosen_sources(settings, ("data", "dta"))
    assert raised.value.hint == "sources are: data"
