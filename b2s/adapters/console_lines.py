"""Log events as lines for people, broken between words where the terminal ends."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from textwrap import wrap
from typing import Any, TextIO

from b2s.core.text import escaped

_LEVEL_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31"}  # SGR parameters
_LEVEL_CELLS = len("warning")
_NEEDS_NO_QUOTES = re.compile(r"[^\s\"'=,]+")


def terminal_width(stream: TextIO | None) -> int | None:
    """Return how many columns the terminal has that this stream is; None where it is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None if stream is not None else None
    except (OSError, ValueError, AttributeError):  # no terminal; closed
        return None


def console_line(event: Mapping[str, Any], *, colours: bool, width: int | None) -> str:
    """Return time, level, event and fields; what has no value is left out.

    Args:
        event: Bounded JSON types, as a line of JSON would have them.
        colours: Whether level and event are set off.
        width: Columns to stay within, where no single word is longer: what does not fit goes to indented lines, and
            each member of a list of objects gets its own. None: one line.
    """
    level, name = str(event["level"]), escaped(str(event["event"]))
    fields = {key: value for key, value in event.items() if key not in ("event", "level", "timestamp")}
    groups = [" ".join([name, *_words(fields)])]
    groups += [" ".join(_words(row)) for value in fields.values() if _is_table(value) for row in value]
    head = f"{datetime.now().astimezone():%H:%M:%S} {level:<{_LEVEL_CELLS}} "
    if width is None:
        lines = [" ".join(groups)]
    else:
        room = max(1, width - len(head))
        lines = [line for group in groups for line in wrap(group, room, break_long_words=False, break_on_hyphens=False)]
    if colours:
        lines[0] = f"\x1b[1m{name}\x1b[0m{lines[0].removeprefix(name)}"
    text = f"\n{'':{len(head)}}".join(lines)
    if colours:
        head = head.replace(level, f"\x1b[{_LEVEL_COLOURS.get(level, '0')}m{level}\x1b[0m", 1)
    return head + text


def _words(fields: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _words(value, f"{prefix}{escaped(key)}.")
        elif value not in (None, [], "") and not _is_table(value):
            yield f"{prefix}{escaped(key)}={_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_shown(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    text = escaped(str(value))
    return text if _NEEDS_NO_QUOTES.fullmatch(text) else '"' + text.replace('"', '\\"') + '"'


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)
