"""A picture of how a network's channel widths grew: one bar chart per phase, one bar per channel space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from morphir.runtime.storage.pictures import svg

_CAPTION = "channel space, in program order (blue: wider than in the seed, orange: narrower)"
_PANELS = 12
_COLUMNS = 4
_GROWN, _SHRUNK, _SAME = "#2a78b5", "#d1603d", "#9aa5ad"


def plot_widths(widths: Sequence[Mapping[str, int]], labels: Sequence[str]) -> bytes:
    """Draws the widths of one network over time as SVG; the same input gives the same bytes.

    Args:
        widths: For each point in time, space name to number of channel groups, in program order.
        labels: For each point in time, its name. At most twelve points are drawn, the first and the last
            among them.
    """
    chosen = _spread(len(widths))
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.1 * rows + 0.6), layout="constrained")
    axes = cast(Any, figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)).ravel()
    for axis, point in zip(axes, chosen, strict=False):
        _panel(axis, widths[0], widths[point], labels[point])
    for axis in axes[len(chosen) :]:
        axis.set_axis_off()
    cast(Any, figure).supxlabel(_CAPTION, fontsize=9)
    cast(Any, figure).supylabel("channel groups", fontsize=9)
    return svg(figure)


def _spread(count: int) -> list[int]:
    """Returns at most twelve points of ``count``, evenly spread."""
    if count <= _PANELS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (_PANELS - 1)) for i in range(_PANELS)})


def _panel(axis: Any, first: Mapping[str, int], now: Mapping[str, int], label: str) -> None:
    colours = [_colour(width - first[name]) for name, width in now.items()]
    bars = axis.bar(range(len(now)), list(now.values()), color=colours, width=0.8)
    axis.set_title(f"{label}: {sum(now.values())} groups", fontsize=9, loc="left")
    if len(now) <= 24:
        axis.bar_label(bars, fontsize=6, padding=1)
        axis.set_xticks(range(len(now)), [str(number) for number in range(1, len(now) + 1)], fontsize=6)
    axis.tick_params(axis="y", labelsize=7)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.margins(y=0.12)
    axis.spines[["top", "right"]].set_visible(False)


def _colour(change: int) -> str:
    return _GROWN if change > 0 else _SHRUNK if change < 0 else _SAME
