"""`b2s config`: check and show the config file, print its schema."""

from __future__ import annotations

import os

import click

from b2s.cli.invocation import Invocation
from b2s.cli.options import Group
from b2s.cli.output import print_json, print_paragraph, print_text
from b2s.core.text import escaped


@click.group("config", cls=Group)
def command() -> None:
    """Check or show the config file, or print its JSON Schema."""


@command.command("check")
@click.pass_obj
def check(invocation: Invocation) -> None:
    """Check the config file; every problem is told with its line."""
    settings = invocation.settings()
    print_paragraph("", f"{escaped(invocation.config_path())}: ok")
    for source in settings.sources:
        if not os.path.isdir(source.path):
            print_paragraph("note: ", f"source {source.name}: {escaped(source.path)} does not exist on this host")


@command.command("show")
@click.pass_obj
def show(invocation: Invocation) -> None:
    """Print the settings in force, defaults included, as YAML."""
    from b2s.adapters.config_file import dump_effective

    print_text(dump_effective(invocation.settings(check_host=False)))


@command.command("schema")
@click.pass_obj
def schema(invocation: Invocation) -> None:
    """Print the JSON Schema of the config file, for editors."""
    from b2s.adapters.config_file import json_schema

    invocation.start_log()
    print_json(json_schema())
