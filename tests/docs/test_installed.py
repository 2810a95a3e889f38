"""What `pip install .` puts on a machine works away from the checkout, with everything that ships beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INGREDIENTS = (
    "setup.cfg",
    "setup.py",
    "README.md",
    "LICENSE",
    "sample-config.yaml",
    "b2s",
    "man",
    "completion",
    "scripts",
)
pytestmark = pytest.mark.timeout(300)

SHIPPED = (
    "share/man/man1/b2s.1",
    "share/bash-completion/completions/b2s",
    "share/zsh/site-functions/_b2s",
    "share/fish/vendor_completions.d/b2s.fish",
    "share/b2s/sample-config.yaml",
    "share/b2s/systemd/b2s.service",
    "share/b2s/systemd/b2s.timer",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a copy of the checkout, not editable, and return the prefix."""
    copy, prefix = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("prefix")
    for name in INGREDIENTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(ROOT / name, copy / name)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--ignore-installed",
    ]
    done = subprocess.run([*pip, "--prefix", prefix, copy], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return prefix


def run(installed: Path, *command: str | Path) -> str:
    """Run a command from / that finds the installed b2s and no other; it must succeed and say nothing on stderr."""
    (packages,) = installed.glob("lib*/python*/site-packages")
    done = subprocess.run(
        command,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LANG": "C", "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_command_and_module_are_the_same_program(installed: Path) -> None:
    """`b2s` and `python -m b2s` run from anywhere, and it is the installed code that runs."""
    command = run(installed, installed / "bin/b2s", "--version")
    assert command == run(installed, sys.executable, "-m", "b2s", "--version")
    assert "Commands:" in run(installed, installed / "bin/b2s", "--help")
    where = run(installed, sys.executable, "-c", "import b2s; print(b2s.__file__)")
    assert Path(where.strip()).is_relative_to(installed)


def test_every_module_is_installed(installed: Path) -> None:
    """No package was forgotten, and the types are marked as such."""
    (package,) = installed.glob("lib*/python*/site-packages/b2s")
    wanted = {path.relative_to(ROOT / "b2s") for path in (ROOT / "b2s").rglob("*.py")} | {Path("py.typed")}
    assert wanted == {path.relative_to(package) for path in package.rglob("*") if path.suffix in {".py", ".typed"}}


def test_what_ships_beside_it(installed: Path) -> None:
    """Man page, completions, sample config and systemd units lie where such files lie."""
    assert [name for name in SHIPPED if not (installed / name).is_file()] == []
    sample = installed / "share/b2s/sample-config.yaml"
    run(installed, installed / "bin/b2s", "config", "check", "--log-level", "error", "--config", sample)
