"""The paper's figures 3 and 4: estimates against the truth, and what each learner truly gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from matplotlib.figure import Figure

from morphir.runtime.fidelity.study import PRUNES, Measured, agreement, by_space
from morphir.runtime.storage.pictures import svg

_COLUMNS = 4
_COLOURS = ("#2a78b5", "#d1603d", "#4a9a62", "#8a63b0", "#b58f2a", "#5b6770", "#c2558a", "#2f9c9c")


def plot_estimates(measured: Sequence[Measured], score: str) -> bytes:
    """Draws estimated over true changes of the loss as SVG, one panel for each channel space.

    Args:
        measured: Of one learner, and prunes.
        score: Name of the score.
    """
    spaces = by_space(measured)
    columns = min(_COLUMNS, len(spaces))
    rows = -(-len(spaces) // columns)
    figure = Figure(figsize=(3.0 * columns, 2.6 * rows + 0.5), layout="constrained")
    axes = cast(Any, figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis, (name, items) in zip(axes, spaces.items(), strict=False):
        _scatter(axis, name, items, score)
    for axis in axes[len(spaces) :]:
        axis.set_axis_off()
    cast(Any, figure).supxlabel("true change of the loss (splits blue, prunes orange)", fontsize=9)
    cast(Any, figure).supylabel(f"estimated change, score {score}", fontsize=9)
    return svg(figure)


def plot_gains(means: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draws the mean true change of the loss of each space's splits as SVG, a bar for each learner.

    Args:
        means: Learner to channel space to the mean true change.
    """
    spaces = list(dict.fromkeys(space for own in means.values() for space in own))
    figure = Figure(figsize=(max(6.0, 0.7 * len(spaces) + 2), 3.6), layout="constrained")
    axis = cast(Any, figure.subplots())
    width = 0.8 / max(len(means), 1)
    for number, (learner, own) in enumerate(means.items()):
        places = [at + (number - (len(means) - 1) / 2) * width for at in range(len(spaces))]
        colour = _COLOURS[number % len(_COLOURS)]
        axis.bar(places, [own.get(space, 0.0) for space in spaces], width, label=learner, color=colour)
    axis.axhline(0, color="#333333", linewidth=0.8)
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.set_xticks(range(len(spaces)), spaces, fontsize=7, rotation=45, ha="right")
    axis.set_ylabel("mean true change of the loss", fontsize=9)
    axis.tick_params(axis="y", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, ncols=min(len(means), 4))
    return svg(figure)


def _scatter(axis: Any, name: str, items: Sequence[Measured], score: str) -> None:
    splits = [item for item in items if item.learner != PRUNES and score in item.estimates]
    prunes = [item for item in items if item.learner == PRUNES and score in item.estimates]
    for some, colour in ((prunes, _COLOURS[1]), (splits, _COLOURS[0])):
        axis.scatter(
            [m.truth for m in some], [m.estimates[score] for m in some], s=10, color=colour, alpha=0.7
        )
    values = [value for m in (*splits, *prunes) for value in (m.truth, m.estimates[score])]
    if values:
        ends = min(values), max(values)
        axis.plot(ends, ends, color="#9aa5ad", linewidth=0.8, zorder=0)
    note = f"{100 * agreement(splits, score).relative_error:.0f} %" if splits else "-"
    axis.set_title(f"{name}: {note}", fontsize=8, loc="left")
    axis.tick_params(labelsize=6)
    axis.spines[["top", "right"]].set_visible(False)
