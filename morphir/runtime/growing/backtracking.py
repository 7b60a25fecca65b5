"""Shrinks a selected plan until what it does all at once is believable (the paper applies all of it).

Each change of the loss is estimated as if its morphism were alone. Applied together they repair the same
errors, and overshoot: in a deep network the loss can rise far above what it was. So the whole plan is applied
to copies of the graph, and the loss on a few batches is its joint estimate. Where that is above what the
plan's prunes alone are estimated to cost, theta is halved; and where that does not help, the plan is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from morphir.ir.graph import Graph
from morphir.ir.remarks import Remark
from morphir.runtime.growing.line_search import Trial, best, search
from morphir.runtime.growing.selection import Selection
from morphir.runtime.learning.learner import Score

LossOf = Callable[[Graph], float]
_MOST_CUTS = 3
"""How often the plan itself may be halved."""


@dataclass(frozen=True)
class Plan:
    """What is applied in the end.

    Attributes:
        selection: The morphisms that are left; a remark ``not-believable`` for each that is not.
        trials: The factors on theta that were tried with it.
    """

    selection: Selection
    trials: tuple[Trial, ...]

    @property
    def factor(self) -> float:
        """The factor on theta with the smallest loss."""
        return best(self.trials)


def tried(graph: Graph, selection: Selection, factors: Sequence[float], loss_of: LossOf) -> Plan:
    """Tries the given factors, and takes the best; a single one, or a plan without theta, needs no trial."""
    if len(factors) == 1 or not selection.count("split"):
        return Plan(selection, (Trial(factors[0], math.nan),))
    return Plan(selection, search(graph, selection.morphisms, factors, loss_of))


def backtracked(
    graph: Graph, selection: Selection, factors: Sequence[float], halvings: int, loss_of: LossOf
) -> Plan:
    """Tries the given factors, then smaller ones, then smaller plans, until one is believable.

    Args:
        graph: Left as it is.
        selection: What is to be applied; the best of each space come first.
        factors: The factors on theta to start with.
        halvings: How often the smallest factor may be halved for one plan; 0 tries the factors alone.
        loss_of: Evaluates a graph: the joint estimate is its loss less that of ``graph``.

    Returns:
        The first believable plan; the smallest that was tried where none is.
    """
    if not halvings:
        return tried(graph, selection, factors, loss_of)
    before = loss_of(graph)
    for _ in range(_MOST_CUTS):
        plan = _fitted(graph, selection, factors, halvings, loss_of, before)
        smaller = _halved(selection)
        if believable(plan, before) or len(smaller.taken) == len(selection.taken):
            return plan
        selection = smaller
    return _fitted(graph, selection, factors, halvings, loss_of, before)


def believable(plan: Plan, before: float) -> bool:
    """Whether the loss rises no more than the plan's prunes are estimated to raise it."""
    losses = [trial.loss for trial in plan.trials if math.isfinite(trial.loss)]
    return bool(losses) and min(losses) - before <= _price(plan.selection)


def _price(selection: Selection) -> float:
    return sum(max(score.delta_loss, 0.0) for score in selection.taken if score.morphism.kind == "prune")


def _fitted(
    graph: Graph,
    selection: Selection,
    factors: Sequence[float],
    halvings: int,
    loss_of: LossOf,
    before: float,
) -> Plan:
    """Tries the factors, and then halves the smallest while the plan is not believable."""
    splits = bool(selection.count("split"))
    first = tuple(factors) if splits else (factors[0],)
    plan = Plan(selection, search(graph, selection.morphisms, first, loss_of))
    smallest = min(first)
    for _ in range(halvings if splits else 0):
        if believable(plan, before):
            break
        smallest /= 2
        more = search(graph, selection.morphisms, (smallest,), loss_of)
        plan = replace(plan, trials=plan.trials + more)
    return plan


def _halved(selection: Selection) -> Selection:
    """Returns the better half of each space's morphisms, rounded up."""
    kept: list[Score] = []
    dropped: list[Remark] = []
    for _, members in groupby(selection.taken, key=lambda score: score.morphism.space):
        own = list(members)
        middle = (len(own) + 1) // 2
        kept += own[:middle]
        dropped += map(_remark, own[middle:])
    return replace(selection, taken=tuple(kept), remarks=(*selection.remarks, *dropped))


def _remark(score: Score) -> Remark:
    morphism = score.morphism
    message = f"{morphism.kind}: with all others at once the loss rises by more than was estimated"
    return Remark("missed", "not-believable", message, morphism.space, morphism.index)
