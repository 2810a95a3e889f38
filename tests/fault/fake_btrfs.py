"""A `btrfs` that lies: put earlier in PATH, it does something else on one command and is the real one otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path


def fake_btrfs(directory: Path, instead: str, name: str = "fake", *, command: str = "send") -> Path:
    """Write the program into a directory of its own below `directory`; return that directory, for PATH.

    Args:
        directory: Private to the test.
        instead: Shell commands to run instead of `command`; ``real`` is a function that does what was asked.
        name: Of the directory.
        command: The word that tells which command is meant, ``delete`` say.
    """
    real = shutil.which("btrfs")
    assert real is not None
    home = directory / name
    home.mkdir()
    program = home / "btrfs"
    program.write_text(
        f"""#!/bin/sh
for word in "$@"; do
    if [ "$word" = {command} ]; then asked=yes; fi
done
if [ "$asked" != yes ]; then exec {real} "$@"; fi
arguments="$*"
real() {{ {real} $arguments; }}
{instead}
"""
    )
    program.chmod(0o755)
    return home
