"""The man page, made from the commands and options themselves; scripts/man-page writes it to man/b2s.1."""

from __future__ import annotations

from collections.abc import Iterator

import click

from b2s.cli.main import cli
from b2s.cli.options import global_options

# Scripts depend on them. The README has the same table, a test compares.
EXIT_CODES = {
    "0": "Done, or nothing was due.",
    "1": "Something failed.",
    "2": "The command line or the config file is wrong.",
    "3": "Another run holds the lock.",
    "4": "Something in the bucket is missing, damaged or not to be trusted.",
    "5": "Archived data is being retrieved: run again later.",
    "129, 130, 143": "Stopped by SIGHUP, SIGINT or SIGTERM, in an orderly way; the next run goes on.",
}
ENVIRONMENT = {
    "B2S_CONFIG": "The config file, where --config is not given.",
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_CA_BUNDLE, ...": "As boto3 knows them.",
    "HTTPS_PROXY, NO_PROXY, ...": "Proxies, for S3 and for notify.ping_url.",
    "NO_COLOR": "No colours on terminals.",
    "NOTIFY_SOCKET": "Set by systemd: how far a backup is, for `systemctl status`.",
}
FILES = {
    "/etc/b2s/config.yaml": "The config file.",
    "/var/lib/b2s/state.db": "Journal and cache (state_path).",
    "/run/b2s/b2s.lock": "The lock of a run (lock_path).",
    "/dev/shm/b2s-*": "The spool of a run in memory.",
}


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its full name, as `config check`; groups are left out."""
    context = click.Context(cli, info_name="b2s")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", each) for inner, each in command.commands.items())
        elif command is not None:
            yield name, command


def own_options(command: click.Command) -> list[click.Option]:
    """Return a command's options without those that all have."""
    common = {option.name for option in global_options()}
    return [each for each in command.params if isinstance(each, click.Option) and each.name not in common]


def man_page() -> str:
    """Return the page as roff."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield '.\\" Written by scripts/man-page; do not edit.'
    yield '.TH B2S 1 "" "b2s" "User Commands"'
    yield ".SH NAME"
    yield _text("b2s - back up btrfs subvolumes to S3 and restore them anywhere")
    yield ".SH SYNOPSIS"
    yield ".B b2s"
    yield ".I COMMAND"
    yield "[options]"
    yield ".SH DESCRIPTION"
    yield _text(
        "b2s snapshots btrfs subvolumes, sends the snapshots in full or incrementally as objects to an S3 bucket, goes "
        "on where an interrupted run stopped, and restores any backup on any host that has the bucket's credentials. "
        "Results go to stdout, the log to stderr: one JSON object per line, or lines for people on a terminal."
    )
    yield ".SH COMMANDS"
    for name, command in commands():
        yield f'.SS "b2s {_text(name)}"'
        yield from _paragraphs(command.help or "")
        yield from _options(own_options(command))
    yield ".SH COMMON OPTIONS"
    yield _text("Every command takes them, before or after its name.")
    yield from _options(global_options())
    for title, entries in (("EXIT STATUS", EXIT_CODES), ("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)):
        yield f".SH {title}"
        for name, meaning in entries.items():
            yield ".TP"
            yield f"\\fB{_text(name)}\\fR"
            yield _text(meaning)
    yield ".SH SEE ALSO"
    yield _text("btrfs-send(8), btrfs-receive(8), and the documentation that comes with b2s.")


def _options(options: list[click.Option]) -> Iterator[str]:
    for option in options:
        names = ", ".join([*option.opts, *option.secondary_opts])
        yield ".TP"
        yield f"\\fB{_text(names)}\\fR{_value(option)}"
        default = f"  [default: {option.default}]" if option.show_default else ""
        yield _text((option.help or "") + default)


def _value(option: click.Option) -> str:
    if option.is_flag:
        return ""
    choices = "|".join(option.type.choices) if isinstance(option.type, click.Choice) else None
    return f" \\fI{_text(option.metavar or choices or option.name or '')}\\fR"


def _paragraphs(text: str) -> Iterator[str]:
    for index, paragraph in enumerate(text.split("\n\n")):
        if index:
            yield ".PP"
        yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """Escape what roff would take for its own."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
