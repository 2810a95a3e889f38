"""Measure b2s and every peer found, in interleaved rounds, and write tables and plots."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.bench import machine, plot, report
from scripts.bench.measured import run
from scripts.bench.suites import SUITES, Suite, bench
from scripts.bench.tools import HERE

GIB = 1 << 30


def main() -> None:
    """Run what the command line asks for."""
    options = _options()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("stopped"))  # mounts and servers are taken down on the way out
    results = options.results / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    results.mkdir(parents=True)
    found: dict[str, Any] = {"machine": machine.describe(), "rounds": options.rounds, "suites": []}
    with bench(int(options.gib * GIB)) as made:
        for name in options.only or SUITES:
            measured = _measure(made.suite(name), options)
            found["suites"].append(measured)
            print(report.text_table(measured), flush=True)
            (results / "results.json").write_text(json.dumps(found, indent=1))
            tables = "\n".join(report.markdown_table(each) for each in found["suites"])
            (results / "tables.md").write_text(f"{report.machine_line(found['machine'])}\n\n{tables}")
    drawn = plot.draw(found["suites"], results)
    print(f"{results}: results.json, tables.md{', plots' if drawn else ' (no plots: matplotlib is not installed)'}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a stream of 0.25 GiB, 2 rounds: does it all work?")
    parser.add_argument("--full", action="store_true", help="also what takes long: storing sink with restic, SeaweedFS")
    parser.add_argument("--gib", type=float, help="size of the full stream; default 2")
    parser.add_argument("--rounds", type=int, help="after a first one that samples memory; default 5")
    parser.add_argument("--only", help=f"some of the suites: {', '.join(SUITES)}")
    parser.add_argument("--rows", help="only rows whose name contains one of these")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where to write")
    options = parser.parse_args()
    options.gib = options.gib or (0.25 if options.quick else 2.0)
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.only = (
        options.only.split(",") if options.only else [n for n, s in SUITES.items() if options.full or not s.long]
    )
    unknown = set(options.only) - set(SUITES)
    if unknown:
        parser.error(f"unknown suites: {', '.join(sorted(unknown))}")
    return options


def _measure(suite: Suite, options: argparse.Namespace) -> dict[str, Any]:
    """Run all rows of a suite in turn, round after round; the first round only samples memory."""
    wanted = options.rows.split(",") if options.rows else [""]
    rows = [row for row in suite.rows if any(part in row.name for part in wanted)]
    costs: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    broken: dict[str, str] = {}
    rounds = options.rounds if suite.rounds is None else suite.rounds
    for number in range(rounds + 1):
        for row in rows:
            if row.name in broken:
                continue
            print(
                f"\r{suite.name}: round {number} of {rounds}, {row.name:30}",
                end="",
                file=sys.stderr,
                flush=True,
            )
            try:
                row.prepare()
                cost = run(row.pipeline(), sample_memory=number == 0)
            except RuntimeError as error:
                broken[row.name] = str(error)
                continue
            costs[row.name].append(asdict(cost))
            time.sleep(0.2)  # what the row left to do in the background
    print("\r" + " " * 100 + "\r", end="", file=sys.stderr, flush=True)
    return {
        "name": suite.name,
        "title": suite.title,
        "bytes": suite.bytes,
        "rows": [{"name": row.name, "kind": row.kind, "costs": costs[row.name]} for row in rows],
        "broken": broken,
    }


if __name__ == "__main__":
    main()
