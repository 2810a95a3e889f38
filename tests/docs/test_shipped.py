"""What ships beside the program: man page, completion, systemd units, the sample config."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from b2s.cli import completion, man_page
from b2s.cli.options import global_options
from b2s.errors import all_errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "man/b2s.1").read_text()
UNITS = [ROOT / "scripts/systemd/b2s.service", ROOT / "scripts/systemd/b2s.timer"]


def test_man_page_is_up_to_date() -> None:
    """man/b2s.1 is what scripts/man-page would write now: every command and option, and no other."""
    assert man_page.man_page() == PAGE


def test_man_page_has_every_option() -> None:
    """Each option of each command is on the page, with a sentence of help."""
    text = PAGE.replace("\\-", "-")
    for _, command in man_page.commands():
        for option in [*man_page.own_options(command), *global_options()]:
            assert option.help
            assert option.help.endswith((".", "]")), option.name
            assert all(name in text for name in option.opts)


def test_man_page_has_every_exit_code() -> None:
    """The table of exit codes has every error's, and those of signals."""
    told = {int(code) for codes in man_page.EXIT_CODES for code in codes.split(",")}
    assert told == {0} | {cls.exit_code for cls in all_errors()} | {129, 130, 143}


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man")
def test_man_page_formats_without_warnings() -> None:
    """`man` reads it without a complaint."""
    done = subprocess.run(
        ["man", "--warnings", "-l", str(ROOT / "man/b2s.1")], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_completion_scripts_ask_this_program() -> None:
    """completion/ has a script for each shell, which asks b2s by the variable that it listens to."""
    for name in completion.completions():
        text = (ROOT / "completion" / name).read_text()
        assert f"{completion.COMPLETION_VARIABLE}=" in text, name
        assert "b2s" in text.replace(completion.COMPLETION_VARIABLE, ""), name


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """b2s as a command of that name."""
    program = tmp_path / "b2s"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m b2s "$@"\n')
    program.chmod(0o755)
    return program


def shell(program: Path, *words: str) -> str:
    """Run a shell that finds the program; return what it prints."""
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(program.parent)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_with_the_script_that_ships(program: Path) -> None:
    """A bash that has read it is told what may follow."""
    script = (
        f". {ROOT}/completion/bash/b2s; COMP_WORDS=(b2s restore --ta); COMP_CWORD=2; _b2s_completion {program};"
        'printf "%s\n" "${COMPREPLY[@]}"'
    )
    assert shell(program, "bash", "-c", script).split() == ["--target"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_with_the_script_that_ships(program: Path) -> None:
    """A fish that has read it offers the option, with its help."""
    offered = shell(program, "fish", "-c", f'source {ROOT}/completion/fish/b2s.fish; complete -C "b2s restore --targ"')
    assert offered.split()[:2] == ["--target", "The"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes_with_the_script_that_ships(program: Path) -> None:
    """An interactive zsh that finds it on its fpath completes the option at the tab key."""
    script = f"""
        zmodload zsh/zpty
        zpty inner zsh -f -i
        zpty -w inner "PS1=; fpath=({ROOT}/completion/zsh \\$fpath); autoload -Uz compinit; compinit -u -D"
        zpty -w inner "print re''ady"
        zpty -r -m inner seen '*ready*'
        zpty -w -n inner $'b2s restore --targ\\t'
        zpty -r -m inner seen '*--target*'
        zpty -d inner
        print completed
    """
    assert shell(program, "zsh", "-f", "-c", script) == "completed\n"


def test_completion_completes() -> None:
    """A shell that asks is told commands and options."""

    def complete(words: str, index: int) -> list[str]:
        environment = {
            completion.COMPLETION_VARIABLE: "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(index),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-m", "b2s"], env=environment, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("b2s ba", 1) == ["backup"]
    assert complete("b2s backup --dry", 2) == ["--dry-run"]


def test_everything_that_is_installed_exists() -> None:
    """The files that setup.cfg installs are there."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    files = [file for line in setup["options.data_files"].values() for file in line.split()]
    assert len(files) >= 6
    for file in files:
        assert (ROOT / file).is_file(), file


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say but that b2s and its man page are not installed here."""
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/local/bin/b2s", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert [line for line in done.stderr.splitlines() if "b2s" in line] == []


def test_the_unit_keeps_what_the_docs_promise() -> None:
    """Exit codes that are no failure, an orderly stop, the lock of others left alone, nothing that hides mounts."""
    service = UNITS[0].read_text()
    assert "SuccessExitStatus=3 129 130 143" in service
    assert "KillMode=mixed" in service
    assert "RuntimeDirectoryPreserve=yes" in service, "systemd would remove the lock of a run called by hand"
    settings = re.findall(r"^(\w+)=", service, flags=re.MULTILINE)
    hiding = {"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateUsers"}
    assert not hiding & set(settings)
