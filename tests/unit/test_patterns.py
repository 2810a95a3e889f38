"""The regular expressions mean the same on every Python that b2s supports."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

import b2s

# These act when they are imported: signals ignored, objects frozen. They are the forkserver's alone.
ACTING = {"b2s.__main__", "b2s.processes.undisturbed", "b2s.processes.preloaded"}


def patterns() -> dict[str, re.Pattern[str] | re.Pattern[bytes]]:
    """Return every compiled pattern of every module by its full name."""
    found = {}
    for module in pkgutil.walk_packages(b2s.__path__, "b2s."):
        if module.name not in ACTING:
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, re.Pattern):
                    found[f"{module.name}.{name}"] = value
    return found


PATTERNS = patterns()


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_is_neither_possessive_nor_atomic(name: str) -> None:
    """Python 3.11 before 3.11.5 matches such groups wrongly (CPython issue 106052); Debian 12 has 3.11.2."""
    parsed = str(re._parser.parse(PATTERNS[name].pattern))  # type: ignore[attr-defined]  # there is no public way
    assert "POSSESSIVE" not in parsed
    assert "ATOMIC" not in parsed


def test_there_are_patterns() -> None:
    """The search finds them."""
    assert "b2s.core.untrusted_json._HASH_LIST" in PATTERNS
    assert "POSSESSIVE" in str(re._parser.parse(r"(?:a*b)*+"))  # type: ignore[attr-defined]
