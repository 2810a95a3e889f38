"""Draw the results: rate and CPU cost side by side, one pair of bars per tool, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.bench.report import Line, lines

COLOURS = {"b2s": "#1f77b4", "peer": "#9aa5b1", "limit": "#d8c7a3"}


def draw(suites: list[dict[str, Any]], directory: Path) -> bool:
    """Write one picture of all suites; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    drawable = [(suite, found) for suite in suites if suite["bytes"] and (found := lines(suite))]
    if not drawable:
        return False
    heights = [len(found) + 1.6 for _, found in drawable]
    figure = Figure(figsize=(11, 0.34 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(drawable), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for (suite, found), (left, right) in zip(drawable, axes, strict=True):
        rates = [(line.rate, line.rate_min, line.rate_max) for line in found]
        costs = [(line.cpu, line.cpu_min, line.cpu_max) for line in found]
        _bars(left, found, rates, "MB/s, more is better")
        _bars(right, found, costs, "CPU seconds per GiB, less is better")
        right.set_yticklabels([])
        left.set_title(suite["title"], loc="left", fontsize=10)
    for suffix in ("png", "svg"):
        figure.savefig(directory / f"results.{suffix}", dpi=130)
    return True


def _bars(axis: Any, found: list[Line], figures: list[tuple[float, float, float]], label: str) -> None:
    """Draw medians as bars with their numbers, from least to most as lines."""
    positions = range(len(found))
    medians = [median for median, _, _ in figures]
    axis.barh(positions, medians, color=[COLOURS[line.kind] for line in found], height=0.7)
    spread = [[median - low for median, low, _ in figures], [high - median for median, _, high in figures]]
    axis.errorbar(medians, positions, xerr=spread, fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
    top = max(high for _, _, high in figures)
    for position, (median, _, high) in zip(positions, figures, strict=True):
        axis.text(
            high + top * 0.01, position, f"{median:.0f}" if median >= 20 else f"{median:.2f}", va="center", fontsize=8
        )
    axis.set_yticks(positions, [line.name for line in found], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, top * 1.12)
    axis.set_xlabel(label, fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
