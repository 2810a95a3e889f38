"""The log: one bounded line per event, the same fields first, no secrets, and no failure of its own."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from b2s.adapters import logs
from b2s.core.settings import LogSettings
from b2s.errors import UsageError

SECRET = "wJalrXUtnFEMI/CANARY/bPxRfiCY"


def lines_of(text: str) -> list[dict[str, object]]:
    """Return the events of a JSON log."""
    return [json.loads(line) for line in text.splitlines()]


def test_fields_come_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Who said it and when stands first in every line."""
    logs.configure(LogSettings(format="json"), "run-1", "chunker")
    logs.get_logger().bind(source="data").warning("part_retried", attempt=2)
    (line,) = lines_of(capsys.readouterr().err)
    assert list(line) == ["event", "timestamp", "level", "run_id", "pid", "process", "source", "attempt"]
    assert line["event"] == "part_retried"
    assert line["level"] == "warning"
    assert line["pid"] == os.getpid()
    assert line["process"] == "chunker"
    assert str(line["timestamp"]).endswith("Z")


def test_process_started_carries_the_child(capsys: pytest.CaptureFixture[str]) -> None:
    """The pid and process given with an event win over the writer's own."""
    logs.configure(LogSettings(format="json"), "run-1")
    logs.get_logger().info("process_started", pid=7, process="btrfs")
    (line,) = lines_of(capsys.readouterr().err)
    assert (line["pid"], line["process"]) == (7, "btrfs")


def test_hostile_values_stay_on_one_bounded_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Newlines, escape sequences, lone surrogates, NaN, megabytes and cycles become one line of valid JSON."""
    endless: list[object] = []
    endless.append(endless)
    logs.configure(LogSettings(format="json"), "run-1")
    logs.get_logger().info(
        "send_failed",
        stderr="a\nb\r\x1b[31m\u2028\udcff\x00" + "x" * 3_000_000,
        ratio=float("nan"),
        many=["y" * 5000] * 1000,
        endless=endless,
        huge=10**400,
        **{"bad\nkey": b"\xff"},
    )
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.isascii()
    assert len(text) <= logs.LINE_LENGTH_MAX + 1
    assert lines_of(text)[0]["event"] == "send_failed"


def test_console_lines_escape_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """A name with a newline cannot forge a line on a terminal."""
    logs.configure(LogSettings(format="console"), "run-1")
    logs.get_logger().info("orphan_removed", path="a\n\x1b[2Jb")
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "\x1b[2J" not in text


def test_secrets_are_taken_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No value of the credential variables, no signature and no login gets into a line, at whatever depth."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET[::-1])
    for form in ("json", "console"):
        logs.configure(LogSettings(format=form), "run-1")  # type: ignore[arg-type]
        log = logs.get_logger()
        log.error(f"x{SECRET}", a=[{"b": f"-{SECRET}-", SECRET: 1}], c=SECRET[::-1])
        log.error("url", url=f"https://h/?X-Amz-Signature=abc{SECRET}&x=1", proxy=f"http://u:{SECRET[:9]}@h/")
        try:
            raise ValueError(SECRET)
        except ValueError:
            log.exception("bug")
    text = capsys.readouterr().err
    assert "CANARY" not in text
    assert SECRET[::-1] not in text
    assert "X-Amz-Signature=[redacted]" in text


def test_level_filters(capsys: pytest.CaptureFixture[str]) -> None:
    """Events below the level are not written."""
    logs.configure(LogSettings(level="warning", format="json"), "run-1")
    logs.get_logger().info("run_started")
    logs.get_logger().error("run_finished")
    assert [line["event"] for line in lines_of(capsys.readouterr().err)] == ["run_finished"]


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_missing_stderr_stops_nothing(stream: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging to nowhere is silent."""
    broken = None
    if stream:
        broken = io.StringIO()
        broken.close()
    monkeypatch.setattr(sys, "stderr", broken)
    logs.configure(LogSettings(), "run-1")
    logs.get_logger().error("run_finished")
    assert not logs.on_terminal()


def test_log_file_is_private_and_follows_rotation(tmp_path: Path) -> None:
    """The file is made 0600 in a directory of 0700, and after a rename the next line goes to a new one."""
    path = tmp_path / "log" / "b2s.log"
    logs.configure(LogSettings(file=str(path)), "run-1")
    logs.get_logger().info("first")
    path.rename(path.with_suffix(".1"))
    logs.get_logger().info("second")
    path.unlink()
    logs.get_logger().info("third")
    assert [line["event"] for line in lines_of(path.with_suffix(".1").read_text())] == ["first"]
    assert [line["event"] for line in lines_of(path.read_text())] == ["third"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_full_disk_sends_lines_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """What the file cannot take is not lost."""
    logs.configure(LogSettings(file="/dev/full"), "run-1")
    logs.get_logger().info("run_started")
    assert lines_of(capsys.readouterr().err)[0]["event"] == "run_started"


def test_an_impossible_log_file_is_told(tmp_path: Path) -> None:
    """A path below a file is a usage error, not a trace; a child falls back to stderr."""
    (tmp_path / "file").write_text("")
    settings = LogSettings(file=str(tmp_path / "file" / "b2s.log"))
    with pytest.raises(UsageError, match="cannot be opened"):
        logs.configure(settings, "run-1")
    logs.configure_child(settings, "run-1", "chunker")


def test_unconfigured_logging_keeps_stdout_clean() -> None:
    """A module that logs before anything was set up writes JSON to stderr."""
    code = "from b2s.adapters import logs; log = logs.get_logger(); log.info('a'); log.error('b')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == ""
    assert [line["event"] for line in lines_of(done.stderr)] == ["b"]
