"""Shrinks a selected plan until what it does all at once is believable (the paper applies all of it).

Each change of the loss is estimated as if its morphism were alone. Applied together they repair the same
errors, and overshoot: in a deep network the loss can rise far above what it was. So the whole plan is applied
to copies of the graph, and the loss on a few batches is its joint estimate. It may rise by what the plan's
prunes are estimated to cost. Splits change nothing at theta = 0, so what the prunes do together is measured
first, and the worse half of them left out while it is more; then theta is halved while the whole does more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from morphir.ir.graph import Graph
from morphir.ir.remarks import Remark
from morphir.runtime.growing.line_search import Trial, best, search
from morphir.runtime.growing.selection import Selection
from morphir.runtime.learning.learner import Score

LossOf = Callable[[Graph], float]


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
    """Leaves prunes out until they are believable; tries the given factors, then smaller ones until one is.

    Args:
        graph: Left as it is.
        selection: What is to be applied.
        factors: The factors on theta to start with.
        halvings: How often the smallest factor may be halved; 0 tries the factors alone, with all prunes.
        loss_of: Evaluates a graph: the joint estimate is its loss less that of ``graph``.

    Returns:
        The first believable plan; that with the best of all factors where none is.
    """
    if not halvings:
        return tried(graph, selection, factors, loss_of)
    before = loss_of(graph)
    selection = _with_believable_prunes(graph, selection, loss_of, before)
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


def _with_believable_prunes(graph: Graph, selection: Selection, loss_of: LossOf, before: float) -> Selection:
    while selection.count("prune"):
        prunes = [m for m in selection.morphisms if m.kind == "prune"]
        (alone,) = search(graph, prunes, (1.0,), loss_of)
        if alone.loss - before <= _price(selection):
            break
        selection = _with_half_the_prunes(selection)
    return selection


def _with_half_the_prunes(selection: Selection) -> Selection:
    """Leaves out the prunes that are estimated to cost most, half of them rounded up."""
    prunes = [score for score in selection.taken if score.morphism.kind == "prune"]
    dropped = sorted(prunes, key=lambda score: score.delta_loss)[len(prunes) // 2 :]
    left_out = set(map(id, dropped))
    kept = tuple(score for score in selection.taken if id(score) not in left_out)
    return replace(selection, taken=kept, remarks=(*selection.remarks, *map(_remark, dropped)))


def _remark(score: Score) -> Remark:
    morphism = score.morphism
    message = f"{morphism.kind}: with the others at once the loss rises by more than was estimated"
    return Remark("missed", "not-believable", message, morphism.space, morphism.index)
