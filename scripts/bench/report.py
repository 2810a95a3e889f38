"""Medians, spreads and ratios, as text and as Markdown."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """One row's figures over all rounds but the first."""

    name: str
    kind: str
    rate: float  # MB/s, median
    rate_min: float
    rate_max: float
    cpu: float  # CPU seconds per GiB, median
    cpu_min: float
    cpu_max: float
    pss_mib: float  # peak, from the first round
    seconds: float  # median


def lines(suite: dict[str, Any]) -> list[Line]:
    """Return a suite's figures, the order of its rows kept."""
    found = []
    for row in suite["rows"]:
        timed = row["costs"][1:] or row["costs"]
        if not timed:
            continue
        rates = [suite["bytes"] / cost["seconds"] / 1e6 for cost in timed]
        size = suite["bytes"] or GIB  # of a fixed cost, the seconds themselves
        per_gib = [cost["tool_cpu_seconds"] * GIB / size for cost in timed]
        found.append(
            Line(
                row["name"],
                row["kind"],
                statistics.median(rates),
                min(rates),
                max(rates),
                statistics.median(per_gib),
                min(per_gib),
                max(per_gib),
                row["costs"][0]["peak_pss_bytes"] / MIB,
                statistics.median(cost["seconds"] for cost in timed),
            )
        )
    return found


def _table(suite: dict[str, Any]) -> list[list[str]]:
    found = lines(suite)
    peers = [line for line in found if line.kind == "peer"]
    limits = [line for line in found if line.kind == "limit"]
    head = [
        "",
        "MB/s",
        "min-max",
        "of best peer",
        "of limit",
        "CPU-s/GiB",
        "min-max",
        "of leanest peer",
        "peak PSS MiB",
    ]
    best = max((peer.rate for peer in peers), default=0.0)
    leanest = min((peer.cpu for peer in peers), default=0.0)
    return [head, *(_cells(line, best, leanest, limits[0].rate if limits else 0.0) for line in found)]


def _fixed(found: list[Line]) -> list[list[str]]:
    """Return the table of a suite whose rows are not about a stream of one length: seconds, not rates."""
    head = ["", "CPU seconds", "min-max", "seconds", "peak PSS MiB"]
    rows = [
        [
            line.name,
            f"{line.cpu:.2f}",
            f"{line.cpu_min:.2f}-{line.cpu_max:.2f}",
            f"{line.seconds:.2f}",
            f"{line.pss_mib:.0f}",
        ]
        for line in found
    ]
    return [head, *rows]


def _cells(line: Line, best: float, leanest: float, limit: float) -> list[str]:
    """Return one row; ratios are left out where there is nothing to compare with."""
    compared = line.kind != "limit"
    return [
        line.name,
        f"{line.rate:.0f}",
        f"{line.rate_min:.0f}-{line.rate_max:.0f}",
        f"{line.rate / best:.2f}" if best and compared else "",
        f"{line.rate / limit:.2f}" if limit else "",
        f"{line.cpu:.2f}",
        f"{line.cpu_min:.2f}-{line.cpu_max:.2f}",
        f"{line.cpu / leanest:.2f}" if leanest and compared else "",
        f"{line.pss_mib:.0f}",
    ]


def text_table(suite: dict[str, Any]) -> str:
    """Return a suite as columns for a terminal."""
    table = _table(suite)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    body = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    return "\n".join([f"\n{_title(suite)}", *body, *_broken(suite)])


def markdown_table(suite: dict[str, Any]) -> str:
    """Return a suite as a Markdown section."""
    table = _table(suite)
    rule = ["---"] + ["---:"] * (len(table[0]) - 1)
    body = ["| " + " | ".join(row) + " |" for row in [table[0], rule, *table[1:]]]
    return "\n".join([f"### {_title(suite)}\n", *body, "", *_broken(suite)])


def machine_line(machine: dict[str, str]) -> str:
    """Return what it was measured on."""
    return "; ".join(f"{name} {value}" for name, value in machine.items())


def _title(suite: dict[str, Any]) -> str:
    size = f"{suite['bytes'] / 1e9:.2f} GB; " if suite["bytes"] else ""
    return f"{suite['title']} ({size}`{suite['name']}`)"


def _broken(suite: dict[str, Any]) -> list[str]:
    return [f"{name} failed: {error.strip()[-300:]}" for name, error in suite["broken"].items()]
