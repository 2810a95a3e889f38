"""What people and scripts read: results on stdout, errors on stderr. Only the CLI prints."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from b2s.adapters.console_lines import terminal_width
from b2s.adapters.log_sink import StderrSink
from b2s.adapters.redaction import redact
from b2s.core.text import escaped
from b2s.errors import B2sError

_GAP = "  "
_PROSE_CELLS_MIN = 15  # narrower, a sentence is hard to read
_WORD_CELLS_MAX = 40  # longer words, paths say, may stick out; an id may not
_RIGHT = ("no.", "size")


def print_text(text: str) -> None:
    """Print a result to stdout; a reader that went away (`| head -1`) is no error.

    Raises:
        B2sError: stdout cannot be written for another reason (disk full).
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        abandon_stdout()
    except OSError as error:
        abandon_stdout()
        raise B2sError(f"the result cannot be written to stdout: {error.strerror}") from error


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print_text(json.dumps(document, indent=2, ensure_ascii=True, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under column names; control characters are escaped, None is shown as a dash.

    On a terminal only the last column may take several lines. Where the others alone are too wide for it, every row
    becomes a block with a line for each column: half an id is no use to anybody.
    """
    cells = [["-" if cell is None else escaped(str(cell)) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(columns, *cells, strict=True)]
    room = terminal_width(sys.stdout)
    before = sum(width + len(_GAP) for width in widths[:-1])
    words = [len(word) for row in [columns, *cells] for word in row[-1].split() if len(word) <= _WORD_CELLS_MAX]
    needed = min(widths[-1], max(_PROSE_CELLS_MIN, *words))
    if room is None or before + needed <= room:
        heading, *lines = [_row(columns, widths, row, room) for row in [columns, *cells]]
        print_text("\n".join([_styled(heading, "1"), *lines]))
        return
    label_cells = max(len(column) for column in columns) + len(_GAP)
    for index, row in enumerate(cells):
        if index:
            print_text("")
        for column, cell in zip(columns, row, strict=True):
            print_paragraph(f"{column:<{label_cells}}", cell)


def _row(columns: Sequence[str], widths: Sequence[int], row: Sequence[str], room: int | None) -> str:
    aligned = [
        cell.rjust(width) if column in _RIGHT else cell.ljust(width)
        for column, width, cell in zip(columns, widths, row, strict=True)
    ]
    before = "".join(cell + _GAP for cell in aligned[:-1])
    last = aligned[-1].rstrip()
    return _wrapped(before, last, room).rstrip()


def print_paragraph(label: str, text: str, *, style: str = "") -> None:
    """Print a text after a label; on a terminal its further lines stand below its first, broken between words.

    Args:
        label: With the gap to the text.
        text: One paragraph.
        style: SGR parameters for the label, shown on terminals only.
    """
    wrapped = _wrapped(label, text, terminal_width(sys.stdout))
    print_text(_styled(label.rstrip(), style) + wrapped[len(label.rstrip()) :])


def print_error(message: str, hint: str | None) -> None:
    """Print why a run failed to stderr: `error:` before every problem, then one `hint:` line."""
    sink = StderrSink()
    room = terminal_width(sys.stderr)
    for line in message.splitlines() or [""]:
        sink.write(_wrapped("error: ", escaped(redact(line)), room))
    if hint:
        sink.write(_wrapped("hint: ", escaped(redact(hint)), room))


def print_notice(text: str) -> None:
    """Print to stderr what a person wants to know while a command is at work; above a live line, where there is one."""
    StderrSink().write(_wrapped("", escaped(redact(text)), terminal_width(sys.stderr)))


def print_trace(trace: str) -> None:
    """Print the trace of a bug to stderr."""
    StderrSink().write(redact(trace.rstrip()))


def _wrapped(label: str, text: str, room: int | None) -> str:
    """Return label and text, broken between words where a width is given; a longer word stays whole."""
    if room is None or len(label) + len(text) <= room:
        return label + text
    width = max(room - len(label), 1)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return label + f"\n{'':{len(label)}}".join(lines)


def _styled(text: str, style: str) -> str:
    coloured = style and text and terminal_width(sys.stdout) is not None and "NO_COLOR" not in os.environ
    return f"\x1b[{style}m{text}\x1b[0m" if coloured else text


def abandon_stdout() -> None:
    """Let everything that is still written to stdout vanish, also what Python flushes at its end."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):  # no file behind it; closed; there never was one
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def ensure_utf8() -> None:
    """Start the interpreter again in UTF-8 mode where the locale gave file names another encoding.

    Python does so by itself for LANG=C; another 8-bit locale would look for other paths than the config file says.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def ensure_standard_streams() -> None:
    """Make sure that descriptors 0, 1 and 2 are open and that no character can fail to be written.

    Where one is closed, the next file opened would get its number, and a stray print would end up in it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            os.set_inheritable(descriptor, True)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
