"""Plots as SVG; the same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from morphir.runtime.storage.pictures import svg

_TIME, _MEMORY, _GOAL = "#2a78b5", "#d1603d", "#444444"


def plot_ratios(place: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the time and memory of a learning step, in training steps, with each network's goal.

    Args:
        place: The file.
        rows: One for each network: ``model``, ``ratios`` (of which ``learning``), ``memory_ratio`` (or None),
            ``goal``.
    """
    figure = Figure(figsize=(7.5, 0.55 * len(rows) + 1.3), layout="constrained")
    axis: Any = figure.subplots()
    for position, row in enumerate(rows):
        bars = {"time": (-0.2, row["ratios"]["learning"], _TIME)}
        if row["memory_ratio"]:
            bars["peak memory"] = (0.2, row["memory_ratio"], _MEMORY)
        for label, (offset, ratio, color) in bars.items():
            at = position + offset
            axis.barh(at, ratio, 0.38, color=color, label=None if position else label)
            # Within the bar, where no goal is drawn.
            axis.text(ratio - 0.02, at, f"{ratio:.2f}", va="center", ha="right", fontsize=8, color="white")
        goal = [row["goal"], row["goal"]]
        axis.plot(
            goal, [position - 0.45, position + 0.05], color=_GOAL, label=None if position else "goal (time)"
        )
    axis.axvline(1, color="#999999", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [row["model"] for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel("a learning step over all splits and prunes, in training steps")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, place)


def plot_growth(
    place: Path, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], label: str
) -> None:
    """Draws one panel for each quantity that grows, with one line for each series of (x, y).

    Args:
        place: The file.
        panels: What grows, to series by name.
        label: What y is.
    """
    figure = Figure(figsize=(3.1 * len(panels), 2.9), layout="constrained")
    axes: Any = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, series) in zip(axes, panels.items(), strict=True):
        for title, points in series.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=title)
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(name)
        axis.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            axis.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel(label)
    _save(figure, place)


def _save(figure: Figure, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(svg(figure))
