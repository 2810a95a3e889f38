"""Where log lines go: stderr, or a file that may be rotated at any time. Writing never fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from b2s.errors import UsageError

_shown_by: list[Callable[[str], None]] = []  # at most one: who owns the terminal for now


def show_stderr_lines_with(show: Callable[[str], None] | None) -> None:
    """Have lines for stderr shown by whoever draws on the terminal, so that they do not run into its drawing.

    Args:
        show: Gets a line without newline; None: lines go to stderr again.
    """
    _shown_by[:] = [show] if show is not None else []


class StderrSink:
    """Writes whole lines to stderr; a closed or broken stderr loses lines and stops nothing."""

    def write(self, line: str) -> None:
        """Write one line, its newline added, in one piece."""
        try:
            if _shown_by:
                _shown_by[0](line)
                return
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):  # gone; closed; there never was one
            return


class FileSink:
    """Appends whole lines to a file (0600) and follows it when it is renamed or deleted.

    Several processes append to the same file; O_APPEND keeps their lines whole.
    """

    def __init__(self, path: str) -> None:
        """Open the file; directories are made (0700) when missing.

        Raises:
            UsageError: It cannot be opened.
        """
        self._path = path
        self._descriptor: int | None = None
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            self._open()
        except OSError as error:
            raise UsageError(
                f"the log file {path} cannot be opened: {error.strerror}", hint="change log.file, or its directory"
            ) from error

    def write(self, line: str) -> None:
        """Append one line, its newline added; where the file cannot take it, stderr does."""
        data = (line + "\n").encode("utf-8", "backslashreplace")
        try:
            self._follow()
            if self._descriptor is not None and os.write(self._descriptor, data) == len(data):
                return
        except OSError:
            pass
        StderrSink().write(line)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        self._descriptor = os.open(self._path, flags, 0o600)

    def _follow(self) -> None:
        """Open the path again when it no longer names the file that is open."""
        if self._descriptor is not None:
            held = os.fstat(self._descriptor)
            try:
                there = os.stat(self._path)
            except FileNotFoundError:
                there = None
            if there is not None and (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino):
                return
            self.close()
        self._open()
