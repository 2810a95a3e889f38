"""The completion scripts of the shells, as click makes them; scripts/man-page writes them to completion/."""

from __future__ import annotations

from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from b2s.cli.main import COMPLETION_VARIABLE, cli

# Named as the shells look for them; setup.cfg installs them.
FILES: dict[str, type[ShellComplete]] = {
    "bash/b2s": BashComplete,
    "zsh/_b2s": ZshComplete,
    "fish/b2s.fish": FishComplete,
}


def completions() -> dict[str, str]:
    """Return the scripts by the name of the file that holds them in this repository."""
    return {name: _source(shell(cli, {}, "b2s", COMPLETION_VARIABLE)) for name, shell in FILES.items()}


def _source(shell: ShellComplete) -> str:
    # Not `source()`: bash's would ask an installed bash for its version.
    return (shell.source_template % shell.source_vars()).strip() + "\n"
