"""What ``morphir fidelity`` shows: tables of agreement and of gains, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from morphir.cli.output import print_table
from morphir.runtime.fidelity.learners import PAPER
from morphir.runtime.fidelity.plots import plot_estimates, plot_gains
from morphir.runtime.fidelity.study import PRUNES, Measured, Study, agreement, by_space
from morphir.runtime.fidelity.together import Applied
from morphir.runtime.storage.files import write_atomic


def draw(out: Path, measured: Sequence[Measured], study: Study) -> None:
    """Writes the figures into a folder."""
    learner = study.learners[0]
    shown = [item for item in measured if item.learner in {learner, PRUNES}]
    for score in study.scores:
        write_atomic(out / f"estimates-{score}.svg", plot_estimates(shown, score))
    write_atomic(out / "gains.svg", plot_gains(_gains(measured)))


def _gains(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Returns each learner's mean true change in each space."""
    return {
        learner: {
            space: sum(item.truth for item in items) / len(items)
            for space, items in by_space([m for m in measured if m.learner == learner]).items()
        }
        for learner in dict.fromkeys(m.learner for m in measured)
        if learner != PRUNES
    }


def print_measured(measured: Sequence[Measured], study: Study) -> None:
    """Prints how well each score agrees with the truth, space by space, and what each learner gains."""
    gains = _gains(measured)
    spaces = list(by_space(measured))
    for learner in dict.fromkeys(m.learner for m in measured):
        own = by_space([m for m in measured if m.learner == learner])
        print_table(
            f"{'prunes' if learner == PRUNES else f'splits learned by {learner}'}: "
            "relative error / slope / rank correlation of each score",
            ("space", ">n", *(f">{score}" for score in study.scores)),
            [
                (space, len(own[space]), *(_cell(own[space], s) for s in study.scores))
                for space in spaces
                if space in own
            ],
        )
    print_table(
        "mean true change of the loss by a split",
        ("space", *(f">{learner}" for learner in gains)),
        [
            *(
                (space, *(f"{own.get(space, float('nan')):+.5f}" for own in gains.values()))
                for space in spaces
            ),
            ("sum over all splits", *(f"{_sum(measured, learner):+.4f}" for learner in gains)),
            *_times_the_papers(measured, list(gains)),
            ("spaces that it raises", *(str(sum(v > 0 for v in own.values())) for own in gains.values())),
        ],
    )


def print_many(found: Sequence[Applied]) -> None:
    """Prints what a whole selection changes, in each way to apply it."""
    print_table(
        "a whole selection at once: changes of the loss",
        (
            "plan",
            ">splits",
            ">prunes",
            ">theta times",
            ">sum of estimates",
            ">joint estimate",
            ">truth",
            ">price",
        ),
        [
            (
                item.plan,
                item.splits,
                item.prunes,
                f"{item.factor:g}",
                *(f"{value:+.4f}" for value in (item.predicted, item.joint, item.truth, item.price)),
            )
            for item in found
        ],
    )


def _sum(measured: Sequence[Measured], learner: str) -> float:
    return sum(item.truth for item in measured if item.learner == learner)


def _times_the_papers(measured: Sequence[Measured], learners: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the row that compares with the paper's own learner, where it was asked for."""
    paper = _sum(measured, PAPER)
    if PAPER not in learners or not paper:
        return []
    return [("times the paper's", *(f"{_sum(measured, learner) / paper:.2f}" for learner in learners))]


def _cell(items: Sequence[Measured], score: str) -> str:
    if not any(score in item.estimates for item in items):
        return "-"
    found = agreement(items, score)
    rank = "-" if found.rank is None else f"{found.rank:.2f}"
    return f"{100 * found.relative_error:.0f} % / {found.slope:.2f} / {rank}"
