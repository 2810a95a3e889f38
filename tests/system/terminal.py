"""b2s in a terminal: what a person sees, character by character."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass

from tests.system.commands import RUN_SECONDS_MAX

_ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a call showed on its terminal, stdout and stderr together."""

    exit_code: int
    raw: str
    width: int

    @property
    def lines(self) -> list[str]:
        """Return the lines that are on the screen, and above it, when all is over."""
        return [line.rstrip() for line in _screen(self.raw)]

    @property
    def live(self) -> list[str]:
        """Return every state of the line that is drawn over and over, without colours."""
        drawn = re.findall(r"(?:\r|\n|\x1b\[\?25l)((?:\x1b\[2K)?\x1b\[1m[\w.-]+: [^\r\n]*)", self.raw)
        return [_ESCAPE.sub("", line) for line in drawn]


def call(environment: Mapping[str, str], *arguments: str, width: int = 80) -> Seen:
    """Run b2s with a terminal of this width as stdin, stdout and stderr."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "b2s", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={"TERM": "xterm-256color", **environment},
        start_new_session=True,
    )
    os.close(terminal)
    raw = b""
    try:
        while True:
            try:
                data = os.read(controller, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                break
            if not data:
                break
            raw += data
        process.wait(RUN_SECONDS_MAX)
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    return Seen(process.returncode, raw.decode("utf-8", "replace"), width)


def _screen(raw: str) -> list[str]:
    """Play what a terminal does with new lines, returns, cursor up and erase; lines do not wrap here."""
    lines, row, column, position = [""], 0, 0, 0
    while position < len(raw):
        escape = _ESCAPE.match(raw, position)
        if escape:
            position = escape.end()
            if escape[2] == "A":
                row = max(0, row - int(escape[1] or 1))
            elif escape[2] == "K":
                lines[row] = "" if escape[1] == "2" else lines[row][:column]
            continue
        character = raw[position]
        position += 1
        if character == "\r":
            column = 0
        elif character == "\n":
            row += 1
            lines += [""] if row == len(lines) else []
        else:
            lines[row] = lines[row].ljust(column)[:column] + character + lines[row][column + 1 :]
            column += 1
    return lines
