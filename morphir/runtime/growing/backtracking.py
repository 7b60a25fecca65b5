"""From scores to a plan whose morphisms are worth their price all at once, not only one by one.

Each change of the loss is estimated as if its morphism were alone. Applied together they repair the same
errors, and overshoot: in a deep network the loss can rise far above what it was, and a tenth of the splits
can gain as much as all of them. So plans are applied to copies of the graph, and the loss on a few batches is
their joint estimate (the paper applies all that is selected). What is to be small is the loss together with
the price of what the network takes: the rule by which each morphism pays, for all of them at once.

Prunes come first, since a prune's estimate is of what is applied, while a split's shrinks with theta: all of
them, or the best half, quarter, ..., whichever makes loss and price smallest. The splits are those of the
groups that stay, fewer in spaces whose channels are worth less for their price (``worth.py``). At theta = 0
they change nothing, so theta is halved while they raise the loss; at last the better half of each space's is
kept while loss and price fall.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from morphir.ir.graph import Graph
from morphir.ir.remarks import Remark
from morphir.morphisms.base import Morphism
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.line_search import Trial, best, search
from morphir.runtime.growing.rounding import rounded
from morphir.runtime.growing.selection import Selection, left_out, net_gain, price
from morphir.runtime.growing.worth import shares_of_spaces
from morphir.runtime.learning.learner import Score

LossOf = Callable[[Graph], float]


@dataclass(frozen=True)
class Appraisal:
    """What plans are judged by.

    Attributes:
        loss_of: Evaluates a graph: a plan's joint estimate is the loss after it less that before.
        price_of: What the resources that morphisms take together are worth, in loss.
        select: Chooses of scored morphisms those that pay one by one, the best of each space; takes also the
            factors on spaces' shares, by name.
        fit: Cuts a selection to what the budgets allow, and to what the rewriter can apply.
    """

    loss_of: LossOf
    price_of: Callable[[Sequence[Morphism]], float]
    select: Callable[[Sequence[Score], Mapping[str, float]], Selection]
    fit: Callable[[Selection], Selection]


@dataclass(frozen=True)
class Plan:
    """What is applied in the end.

    Attributes:
        selection: The morphisms that are left; a remark with the reason for each that is not.
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
        """The factor on theta of the best trial; 1 where nothing was there to try."""
        return self.best.factor if self.trials else 1.0


def tried(graph: Graph, selection: Selection, factors: Sequence[float], loss_of: LossOf) -> Plan:
    """Tries the given factors, and takes the best; a single one, or a plan without theta, needs no trial."""
    if not selection.taken:
        return Plan(selection, ())
    if len(factors) == 1 or not selection.count("split"):
        return Plan(selection, (Trial(factors[0], math.nan, selection.count("split")),))
    return Plan(selection, search(graph, selection.morphisms, factors, loss_of))


def planned(
    graph: Graph, scores: Sequence[Score], config: GrowthConfig, appraisal: Appraisal, *, last: bool = False
) -> Plan:
    """Chooses what is applied: the prunes that are worth it together, then the splits beside them.

    Args:
        graph: Left as it is.
        scores: Every candidate.
        config: ``theta_factors`` to start with; ``theta_halvings`` and ``plan_halvings``. Where both are 0
            all that is selected is taken, with the best of the factors, as in the paper.
        appraisal: What plans are judged by.
        last: Whether nothing follows, so that widths are to be multiples of ``width_multiple``.

    Returns:
        The plan with the smallest loss and price of those that were tried; with rounded widths, what is
        nearest to it.
    """
    backtracking = _Backtracking(graph, config, appraisal)
    if backtracking.is_on:
        plan = backtracking.run(scores)
    else:
        selection = appraisal.fit(appraisal.select(scores, {}))
        plan = tried(graph, selection, config.theta_factors, appraisal.loss_of)
    if last and config.width_multiple > 1:
        return backtracking.with_rounded_widths(plan, scores)
    return plan


@dataclass(frozen=True)
class _Backtracking:
    graph: Graph
    config: GrowthConfig
    appraisal: Appraisal

    def run(self, scores: Sequence[Score]) -> Plan:
        if not scores:
            return Plan(Selection((), ()), ())
        prunes = self.prunes([score for score in scores if score.morphism.kind == "prune"])
        splits, beaten = _beside([score for score in scores if score.morphism.kind != "prune"], prunes)
        selected = self.appraisal.select(splits, shares_of_spaces(scores, self.config.prices))
        remarks = (*prunes.selection.remarks, *beaten, *selected.remarks)
        selection = self.appraisal.fit(Selection((*prunes.selection.taken, *selected.taken), remarks))
        if not selection.count("split"):
            return replace(prunes, selection=selection)
        return self.shrunk(self.fitted(selection, prunes.best.loss), prunes)

    @property
    def is_on(self) -> bool:
        """Whether anything may be halved."""
        return bool(self.config.theta_halvings or self.config.plan_halvings)

    def with_rounded_widths(self, plan: Plan, scores: Sequence[Score]) -> Plan:
        """Rounds the widths that a plan leaves, up only where the budgets allow it, and fits theta again."""
        for up in (True, False):
            wanted = rounded(self.graph, plan.selection, scores, self.config, up=up)
            selection = self.appraisal.fit(wanted)
            if len(selection.taken) == len(wanted.taken):
                break
        if set(map(id, selection.taken)) == set(map(id, plan.selection.taken)):
            return replace(plan, selection=selection)
        if not (self.is_on and selection.count("split")):
            return tried(self.graph, selection, self.config.theta_factors, self.appraisal.loss_of)
        without = self.plan(self._with_best(selection, "split", 0), (1.0,)).best.loss
        return self.fitted(selection, without)

    def plan(self, selection: Selection, factors: Sequence[float]) -> Plan:
        """Tries a selection with each factor."""
        morphisms, judged = selection.morphisms, self.appraisal
        price_of_all = judged.price_of(morphisms)
        return Plan(selection, search(self.graph, morphisms, factors, judged.loss_of, price_of_all))

    def prunes(self, scores: Sequence[Score]) -> Plan:
        """Tries no prune, all of them, the best half of them, and so on."""
        selection = self.appraisal.fit(self.appraisal.select(scores, {}))
        halved = [selection.count("prune") >> times for times in range(self.config.plan_halvings + 1)]
        trials = {
            keep: self.plan(self._with_best(selection, "prune", keep), (1.0,)).best
            for keep in dict.fromkeys((0, *halved))
        }
        keep = min(trials, key=lambda count: (trials[count].objective, -count))
        return Plan(self._with_best(selection, "prune", keep), tuple(trials.values()))

    def fitted(self, selection: Selection, without: float) -> Plan:
        """Tries the factors, and then halves the smallest while the loss is above that without the splits."""
        plan = self.plan(selection, self.config.theta_factors)
        smallest = min(self.config.theta_factors)
        for _ in range(self.config.theta_halvings):
            if any(trial.loss <= without for trial in plan.trials):
                break
            smallest /= 2
            plan = replace(plan, trials=plan.trials + self.plan(selection, (smallest,)).trials)
        return plan

    def shrunk(self, plan: Plan, prunes: Plan) -> Plan:
        """Keeps the better half of the splits while loss and price fall; none where none is worth it."""
        if not self.config.plan_halvings:
            return plan
        factors = sorted(trial.factor for trial in plan.trials)
        for _ in range(self.config.plan_halvings):
            keep = plan.selection.count("split") // 2
            if not keep:
                break
            smaller = self._climbing(self._with_best(plan.selection, "split", keep), factors, plan.factor)
            shrinks = smaller.best.objective < plan.best.objective
            selection = smaller.selection if shrinks else plan.selection
            plan = Plan(selection, plan.trials + smaller.trials)
            if not shrinks:
                break
        none = prunes.best.objective < plan.best.objective
        selection = self._with_best(plan.selection, "split", 0) if none else plan.selection
        return Plan(selection, plan.trials + prunes.trials)

    def _climbing(self, selection: Selection, factors: Sequence[float], start: float) -> Plan:
        """Tries ever larger factors, up to the first that is no better: fewer splits bear more of theta."""
        plan = self.plan(selection, (start,))
        for factor in (f for f in factors if f > start):
            best_before = plan.best.objective
            plan = replace(plan, trials=plan.trials + self.plan(selection, (factor,)).trials)
            if plan.best.objective >= best_before:
                break
        return plan

    def _with_best(self, selection: Selection, kind: str, keep: int) -> Selection:
        """Leaves out all morphisms of a kind but the best: prunes of all, splits of each space alike."""
        own = [score for score in selection.taken if score.morphism.kind == kind]
        own.sort(key=self._rank)
        if kind == "split":
            own = _of_each_space_alike(own)
        message = "with the others at once it gains less than it costs"
        return _without(selection, own[keep:], "not-worth-it-together", message)

    def _rank(self, score: Score) -> tuple[bool, float]:
        prices = self.config.prices
        cost = price(score, prices)
        return (True, score.delta_loss / cost) if cost > 0 else (False, -net_gain(score, prices))


def _of_each_space_alike(ranked: Sequence[Score]) -> list[Score]:
    """Orders scores so that any start holds about the same part of each space's, the best of it."""
    counts, seen = Counter(score.morphism.space for score in ranked), Counter[str]()
    places: list[float] = []
    for score in ranked:
        seen[score.morphism.space] += 1
        places.append(seen[score.morphism.space] / counts[score.morphism.space])
    order = sorted(range(len(ranked)), key=places.__getitem__)
    return [ranked[position] for position in order]


def _beside(scores: Sequence[Score], prunes: Plan) -> tuple[list[Score], list[Remark]]:
    """Returns the scores of groups that are not pruned, and a remark for each other one."""
    pruned = {(morphism.space, morphism.index) for morphism in prunes.selection.morphisms}
    groups = [(score.morphism.space, score.morphism.index) for score in scores]
    left = [score for score, group in zip(scores, groups, strict=True) if group not in pruned]
    beaten = [
        left_out(score, "other-is-better", "a prune of the same group is worth it")
        for score, group in zip(scores, groups, strict=True)
        if group in pruned
    ]
    return left, beaten


def _without(selection: Selection, dropped: Sequence[Score], code: str, message: str) -> Selection:
    gone = set(map(id, dropped))
    kept = tuple(score for score in selection.taken if id(score) not in gone)
    remarks = [left_out(score, code, message) for score in dropped]
    return replace(selection, taken=kept, remarks=(*selection.remarks, *remarks))
