"""What a check says: fine, doubtful or wrong, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # backups work; something will surprise, cost money or be missing
    PROBLEM = "problem"  # backups fail, or cannot be relied on


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    detail: str
    cure: str | None = None  # None only where nothing is to be done


def ok(check: str, detail: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, Level.OK, detail)


def warning(check: str, detail: str, cure: str) -> Finding:
    """Return a finding that somebody should know of."""
    return Finding(check, Level.WARNING, detail, cure)


def problem(check: str, detail: str, cure: str) -> Finding:
    """Return a finding that has to be cured."""
    return Finding(check, Level.PROBLEM, detail, cure)
