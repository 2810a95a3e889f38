"""What people read: log lines, tables and sentences that break between words and never within one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any

import pytest

from b2s.adapters import logs
from b2s.adapters.console_lines import console_line, terminal_width
from b2s.cli import output
from b2s.core.settings import LogSettings

BACKUP_ID = "20261122T020000Z-full-1f0c2a9b"
EVENT = {
    "event": "run_finished",
    "timestamp": "2026-11-22T02:00:00.000Z",
    "level": "error",
    "command": "backup",
    "send_parent": None,
    "detail": 'a "quoted" sentence that goes on and on and on until no terminal can hold it any more',
    "ok": True,
    "context": {"key": "hosts/web1/data", "stderr": "a\x1b[2Jb"},
    "nothing": [],
    "names": ["a", "b"],
    "results": [{"source": "data", "hint": None}, {"source": "home", "backup_id": BACKUP_ID}],
}


WIDTHS = pytest.mark.parametrize("width", [60, 80, 200])


def on_terminal(width: int, show: Callable[[], None]) -> list[str]:
    """Return the lines that a terminal of this width shows when stdout and stderr lead to it."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    with os.fdopen(terminal, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        show()
    seen = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more, and all was read
        while data := os.read(controller, 65536):
            seen += data
    os.close(controller)
    return seen.decode().splitlines()


def check_width(lines: list[str], width: int) -> None:
    """Assert that only a single long word is wider than the terminal."""
    for line in lines:
        assert len(line) <= width or len(line.split()) == 1, line


@pytest.mark.parametrize("width", [50, 80, 120])
def test_a_log_line_breaks_between_words(width: int) -> None:
    """Nothing is lost, each result has its own line, and what belongs to the event is indented below it."""
    lines = console_line(EVENT, colours=False, width=width).split("\n")
    check_width(lines, width)
    assert lines[0][9:].startswith("error   run_finished command=backup")
    assert all(line[:17] == " " * 17 and line[17] != " " for line in lines[1:])
    results = [line.strip() for line in lines if line.strip().startswith("source=")]
    assert results == ["source=data", "source=home" if width == 50 else f"source=home backup_id={BACKUP_ID}"]
    text = " ".join(line.strip() for line in lines)
    assert 'detail="a \\"quoted\\" sentence that goes' in text
    assert "ok=true context.key=hosts/web1/data context.stderr=a\\x1b[2Jb names=a,b" in text
    assert "None" not in text
    assert "nothing" not in text


def test_a_log_line_without_a_width_is_one_line() -> None:
    """Also of an event with results."""
    line = console_line(EVENT, colours=False, width=None)
    assert "\n" not in line
    assert line.endswith(f"source=data source=home backup_id={BACKUP_ID}")


def test_colours_set_off_level_and_event() -> None:
    """They add nothing but codes."""
    coloured = console_line(EVENT, colours=True, width=80)
    assert "\x1b[31merror\x1b[0m" in coloured
    assert "\x1b[1mrun_finished\x1b[0m" in coloured


@pytest.mark.parametrize(("level", "shown"), [("info", False), ("debug", True)])
def test_people_are_spared_the_start_of_every_process(
    level: str, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Machines are told, and people who want to debug."""
    logs.configure(LogSettings.model_validate({"format": "console", "level": level}), "run-1")
    logs.get_logger().info("process_started", child="uploader")
    assert ("process_started" in capsys.readouterr().err) is shown
    logs.configure(LogSettings(format="json"), "run-1")
    logs.get_logger().info("process_started", child="uploader")
    assert json.loads(capsys.readouterr().err)["child"] == "uploader"


def test_a_terminal_is_not_told_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """What a table or the last error shows is no log line there; anywhere else it is."""

    def log() -> None:
        logs.configure(LogSettings(format="console"), "run-1")
        logs.get_logger().warning("verify_found", finding="chunk_missing")
        logs.get_logger().warning("part_retried", attempt=1)

    (line,) = on_terminal(80, log)
    assert "part_retried attempt=1" in line
    log()
    assert len(capsys.readouterr().err.splitlines()) == 2


def rows(source: str) -> list[tuple[Any, ...]]:
    """Return rows such as `b2s list` has."""
    sentence = "a sentence that is long enough to need more than one line on any terminal of the usual width " * 2
    return [(source, BACKUP_ID, 1234567, None), (source, BACKUP_ID, 1, sentence)]


@WIDTHS
def test_a_table_breaks_only_its_last_column(width: int) -> None:
    """Its lines fit, every id is whole, and columns stand below each other."""
    lines = on_terminal(width, lambda: output.print_table(("source", "backup", "size", "detail"), rows("a")))
    check_width(lines, width)
    assert lines[0].split() == ["source", "backup", "size", "detail"] or width == 60
    assert sum(BACKUP_ID in line for line in lines) == 2
    if width > 60:
        assert {line.index(BACKUP_ID) for line in lines if BACKUP_ID in line} == {lines[0].index("backup")}
        assert [line for line in lines if BACKUP_ID in line][1][lines[0].index("size") :].lstrip().startswith("1  a")


@WIDTHS
def test_an_id_in_the_last_column_does_not_stick_out(width: int) -> None:
    """Where it does not fit beside the others, rows become blocks."""
    lines = on_terminal(width, lambda: output.print_table(("created", "class", "backup"), [("x" * 30, "y", BACKUP_ID)]))
    assert all(len(line) <= width for line in lines)
    assert any(line.endswith(BACKUP_ID) for line in lines)


@WIDTHS
def test_a_table_that_is_too_wide_becomes_blocks(width: int) -> None:
    """A long name makes no column of three letters."""
    lines = on_terminal(
        width, lambda: output.print_table(("source", "backup", "size", "detail"), rows("long-name" * 20))
    )
    assert [line.split()[0] for line in lines[:4]] == ["source", "backup", "size", "detail"]
    assert lines[1].split() == ["backup", BACKUP_ID]
    assert lines[4] == ""
    check_width(lines[1:4], width)


def test_a_piped_table_has_a_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever its width; and no colours."""
    output.print_table(("source", "backup", "size", "detail"), rows("a" * 300))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "\x1b" not in lines[0]


@WIDTHS
def test_sentences_break_between_words(width: int) -> None:
    """A label has its text beside it; errors and hints too."""

    def show() -> None:
        output.print_paragraph("warning  ", "words " * 40, style="33")
        output.print_error("words " * 40, "words " * 40)

    lines = on_terminal(width, show)
    check_width(lines, width)
    assert sum(line.count("words") for line in lines) == 120
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["warning", "error:", "hint:"]


def test_terminals_of_no_size_are_none() -> None:
    """A serial console may say 0: then nothing is broken and nothing coloured."""
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        assert terminal_width(stream) is None
    os.close(controller)
    assert terminal_width(None) is None
