"""Shrinks a selected plan until what it does all at once is believable, and worth its price.

Each change of the loss is estimated as if its morphism were alone. Applied together they repair the same
errors, and overshoot: in a deep network the loss can rise far above what it was, and a tenth of the splits
can gain as much as all of them. So plans are applied to copies of the graph, and the loss on a few batches is
their joint estimate (the paper applies all that is selected).

It may rise by what the plan's prunes are estimated to cost. Splits change nothing at theta = 0, so what the
prunes do together is measured first, and the worse half of them left out while it is more; then theta is
halved while the whole does more. At last, of the splits the better half is kept while that lowers the loss
together with the price of what they add: the rule by which each morphism pays, for all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from morphir.ir.graph import Graph
from morphir.ir.remarks import Remark
from morphir.morphisms.base import Morphism
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.line_search import Trial, best, search
from morphir.runtime.growing.selection import Selection, price
from morphir.runtime.learning.learner import Score

LossOf = Callable[[Graph], float]


@dataclass(frozen=True)
class Appraisal:
    """What plans are judged by.

    Attributes:
        loss_of: Evaluates a graph: a plan's joint estimate is the loss after it less that before.
        price_of: What the resources that morphisms take together are worth, in loss.
        fit: Cuts a selection to what may be applied where some of it was left out: prunes that are not
            applied free nothing for others.
    """

    loss_of: LossOf
    price_of: Callable[[Sequence[Morphism]], float]
    fit: Callable[[Selection], Selection]


@dataclass(frozen=True)
class Plan:
    """What is applied in the end.

    Attributes:
        selection: The morphisms that are left; a remark ``not-believable`` or ``not-worth-it-together`` for
            each that is not.
        trials: What was tried, with these and with more of them.
    """

    selection: Selection
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial with the smallest loss and price."""
        return best(self.trials)

    @property
    def factor(self) -> float:
        """The factor on theta of the best trial."""
        return self.best.factor


def tried(graph: Graph, selection: Selection, factors: Sequence[float], loss_of: LossOf) -> Plan:
    """Tries the given factors, and takes the best; a single one, or a plan without theta, needs no trial."""
    if len(factors) == 1 or not selection.count("split"):
        return Plan(selection, (Trial(factors[0], math.nan, selection.count("split")),))
    return Plan(selection, search(graph, selection.morphisms, factors, loss_of))


def backtracked(graph: Graph, selection: Selection, config: GrowthConfig, appraisal: Appraisal) -> Plan:
    """Shrinks a selection: prunes until they are believable, theta until the whole is, splits while it pays.

    Args:
        graph: Left as it is.
        selection: What is to be applied.
        config: ``theta_factors`` to start with; ``theta_halvings`` and ``plan_halvings``. Where both are 0
            the factors alone are tried, with all prunes and all splits.
        appraisal: What plans are judged by.

    Returns:
        The plan with the smallest loss and price of those that were tried.
    """
    if not selection.taken:
        return Plan(selection, ())
    if not (config.theta_halvings or config.plan_halvings):
        return tried(graph, selection, config.theta_factors, appraisal.loss_of)
    backtracking = _Backtracking(graph, config, appraisal, appraisal.loss_of(graph))
    selection = backtracking.with_believable_prunes(selection)
    if not selection.count("split"):
        return backtracking.plan(selection, config.theta_factors[:1])
    return backtracking.shrunk(backtracking.fitted(selection))


@dataclass(frozen=True)
class _Backtracking:
    graph: Graph
    config: GrowthConfig
    appraisal: Appraisal
    before: float

    def plan(self, selection: Selection, factors: Sequence[float]) -> Plan:
        """Tries a selection with each factor."""
        morphisms, judged = selection.morphisms, self.appraisal
        price_of_all = judged.price_of(morphisms)
        return Plan(selection, search(self.graph, morphisms, factors, judged.loss_of, price_of_all))

    def with_believable_prunes(self, selection: Selection) -> Selection:
        """Leaves prunes out while together they cost more than was estimated."""
        while selection.count("prune"):
            prunes = [m for m in selection.morphisms if m.kind == "prune"]
            (alone,) = search(self.graph, prunes, (1.0,), self.appraisal.loss_of)
            if alone.loss - self.before <= _estimated_cost(selection):
                break
            selection = self.appraisal.fit(_with_half_the_prunes(selection))
        return selection

    def fitted(self, selection: Selection) -> Plan:
        """Tries the factors, and then halves the smallest while the plan is not believable."""
        plan = self.plan(selection, self.config.theta_factors)
        smallest = min(self.config.theta_factors)
        for _ in range(self.config.theta_halvings):
            if self._believable(plan):
                break
            smallest /= 2
            plan = replace(plan, trials=plan.trials + self.plan(selection, (smallest,)).trials)
        return plan

    def _believable(self, plan: Plan) -> bool:
        """Whether the loss rises no more than the plan's prunes are estimated to raise it."""
        losses = [trial.loss for trial in plan.trials if math.isfinite(trial.loss)]
        return bool(losses) and min(losses) - self.before <= _estimated_cost(plan.selection)

    def shrunk(self, plan: Plan) -> Plan:
        """Keeps the better half of the splits while loss and price fall; none where none is worth it."""
        if not self.config.plan_halvings:
            return plan
        factors = sorted(trial.factor for trial in plan.trials)
        for _ in range(self.config.plan_halvings):
            keep = plan.selection.count("split") // 2
            if not keep:
                break
            smaller = self._climbing(self._with_best_splits(plan.selection, keep), factors, plan.factor)
            shrinks = smaller.best.objective < plan.best.objective
            selection = smaller.selection if shrinks else plan.selection
            plan = Plan(selection, plan.trials + smaller.trials)
            if not shrinks:
                break
        without = self.plan(self._with_best_splits(plan.selection, 0), (1.0,))
        none = without.best.objective < plan.best.objective
        selection = without.selection if none else plan.selection
        return Plan(selection, plan.trials + without.trials)

    def _climbing(self, selection: Selection, factors: Sequence[float], start: float) -> Plan:
        """Tries ever larger factors, up to the first that is no better: fewer splits bear more of theta."""
        plan = self.plan(selection, (start,))
        for factor in (f for f in factors if f > start):
            best_before = plan.best.objective
            plan = replace(plan, trials=plan.trials + self.plan(selection, (factor,)).trials)
            if plan.best.objective >= best_before:
                break
        return plan

    def _with_best_splits(self, selection: Selection, keep: int) -> Selection:
        """Leaves out all splits but those that gain most for their price."""
        splits = [score for score in selection.taken if score.morphism.kind == "split"]
        dropped = sorted(splits, key=self._rank)[keep:]
        message = "with the others at once it gains less than it costs"
        return _without(selection, dropped, "not-worth-it-together", message)

    def _rank(self, score: Score) -> tuple[bool, float]:
        cost = price(score, self.config.prices)
        return (True, score.delta_loss / cost) if cost > 0 else (False, score.delta_loss)


def _estimated_cost(selection: Selection) -> float:
    return sum(max(score.delta_loss, 0.0) for score in selection.taken if score.morphism.kind == "prune")


def _with_half_the_prunes(selection: Selection) -> Selection:
    """Leaves out the prunes that are estimated to cost most, half of them rounded up."""
    prunes = [score for score in selection.taken if score.morphism.kind == "prune"]
    dropped = sorted(prunes, key=lambda score: score.delta_loss)[len(prunes) // 2 :]
    message = "with the others at once the loss rises by more than was estimated"
    return _without(selection, dropped, "not-believable", message)


def _without(selection: Selection, dropped: Sequence[Score], code: str, message: str) -> Selection:
    left_out = set(map(id, dropped))
    kept = tuple(score for score in selection.taken if id(score) not in left_out)
    remarks = [
        Remark("missed", code, f"{s.morphism.kind}: {message}", s.morphism.space, s.morphism.index)
        for s in dropped
    ]
    return replace(selection, taken=kept, remarks=(*selection.remarks, *remarks))
