"""The docs name everything that exists, and nothing that does not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from b2s.adapters import metrics_textfile
from b2s.adapters.config_problems import all_keys
from b2s.cli import main, man_page
from b2s.core import events
from b2s.core.model import Reason
from b2s.core.settings import Settings
from b2s.errors import all_errors

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
MONITORING = (ROOT / "docs/monitoring.md").read_text()
README = (ROOT / "README.md").read_text()
STOP_CODES = {129, 130, 143}


def section(text: str, heading: str) -> str:
    """Return what stands between a heading and the next one of any level."""
    return re.split(r"^#", text.partition(f"{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(table: str) -> set[str]:
    """Return every word in backticks of the first column of a table."""
    return {word for line in table.splitlines() if line.startswith("|") for word in quoted(line.split("|")[1])}


def quoted(text: str) -> list[str]:
    """Return the words in backticks."""
    return re.findall(r"`([^`]+)`", text)


def test_events() -> None:
    """Every event is explained, and every explained event exists."""
    exist = {value for name, value in vars(events).items() if name.isupper() and isinstance(value, str)}
    assert first_cells(section(MONITORING, "### Events")) == exist


def test_every_event_is_said_and_no_other() -> None:
    """The program names events by their constants, and uses each of them."""
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "b2s").rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    named = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "events"}
    assert {name for name in vars(events) if name.isupper()} <= named
    levels = {"debug", "info", "warning", "error"}
    said = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    said = [call for call in said if call.func.attr in levels and call.args and "log" in ast.unparse(call.func)]
    assert len(said) > 20
    assert [ast.unparse(call) for call in said if isinstance(call.args[0], ast.Constant)] == []


def test_reasons() -> None:
    """The same of the reasons of a decision."""
    text = section(MONITORING, "### Reasons").partition("one of:")[2]
    assert set(quoted(text)) == {str(reason) for reason in Reason}


def test_prometheus_metrics() -> None:
    """The same of the metrics."""
    exist = set(metrics_textfile.RUN_METRICS) | set(metrics_textfile.SOURCE_METRICS)
    assert first_cells(section(MONITORING, "## Prometheus")) == exist


def test_commands() -> None:
    """The README's table has every command and no other."""
    table = section(README, "## Commands").partition("| exit code |")[0]
    assert {cell.split()[1] for cell in first_cells(table) if cell.startswith("b2s ")} == set(main._COMMANDS)


def test_exit_codes() -> None:
    """The README's table has every exit code and no other."""
    table = section(README, "## Commands").partition("| exit code |")[2]
    told = {
        int(code)
        for line in table.splitlines()
        for code in re.findall(r"\d+", line.split("|")[1] if "|" in line else "")
    }
    assert told == {0} | {cls.exit_code for cls in all_errors()} | STOP_CODES


def calls_of_b2s(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every call that a page shows, in a block or in a line: the command's name, and its options."""
    shown = [line for block in re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL) for line in block.split("\n")]
    for line in [*shown, *quoted(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))]:
        for call in re.findall(r"(?:^|\s|/)b2s ([^#|<]*)", line):
            words = call.split()
            if words and words[0] in main._COMMANDS:
                name = " ".join(words[:2]) if words[0] == "config" and len(words) > 1 else words[0]
                yield name.rstrip(","), re.findall(r"--[a-z][a-z0-9-]*", call)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options(page: Path) -> None:
    """Every call that a page shows is one the program takes, and every option it speaks of is one of somebody's."""
    known = {
        name: {word for option in command.params for word in [*option.opts, *option.secondary_opts]}
        for name, command in man_page.commands()
    }
    everything = set.union({"--help", "--version"}, *known.values())
    for name, options in calls_of_b2s(page.read_text()):
        assert set(options) <= known.get(name, everything) | {"--help"}, f"{page.name}: b2s {name} {options}"
    alone = {word for span in quoted(page.read_text()) if span.startswith("--") for word in [span.split()[0]]}
    assert alone <= everything, f"{page.name}: {alone - everything}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_config_keys(page: Path) -> None:
    """Every key that a page speaks of, by its section, exists."""
    keys = {".".join(str(step) for step in path) for path in all_keys(Settings, ())}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    dotted = {re.split(r"[:=\s*]", span)[0] for span in quoted(page.read_text())}
    dotted = {name for name in dotted if re.fullmatch(r"[a-z0-9]+\.[a-z_.]+", name)}
    named = {name for name in dotted if name.partition(".")[0] in sections}
    known = keys | {key.rpartition(".")[0] for key in keys}
    assert named <= known, f"{page.name}: {named - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    """Every link inside the repository leads somewhere, also to headings."""
    for target in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
        path, anchor = target
        if "://" in path:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {path}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files(page: Path) -> None:
    """Every script that a page names exists."""
    for name in re.findall(r"`(scripts/[\w/.-]+)", page.read_text()):
        assert (ROOT / name.rstrip("/.")).exists(), f"{page.name} names {name}, which does not exist"
