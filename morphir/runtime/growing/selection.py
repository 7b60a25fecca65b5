"""Which of the scored morphisms are applied.

A morphism pays when ``-dL > sum_r lambda_r dR_r`` (section 3.3); of those, each space gets its best share,
since the dL are not additive. Every morphism that is not taken gets a remark with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from morphir.ir.remarks import Remark
from morphir.morphisms.base import Morphism
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.learning.learner import Score

RESOURCES: Mapping[str, Callable[[Score], float]] = {
    "parameters": lambda score: score.delta_parameters,
    "macs": lambda score: score.delta_macs,
}

Measure = Callable[[Sequence[Morphism]], Mapping[str, float]]
"""From a set of morphisms to what the network would use once they are applied."""


@dataclass(frozen=True)
class Selection:
    """What is applied, and why the rest is not.

    Attributes:
        taken: The scores of the morphisms to apply, by space in order of first appearance, the best first.
        remarks: One for each other morphism; codes ``disabled``, ``not-finite``, ``does-not-pay``,
            ``other-is-better``, ``min-width``, ``not-among-best``, ``over-budget``.
    """

    taken: tuple[Score, ...]
    remarks: tuple[Remark, ...]

    @property
    def morphisms(self) -> tuple[Morphism, ...]:
        """The morphisms to apply."""
        return tuple(score.morphism for score in self.taken)

    def count(self, kind: str) -> int:
        """Returns how many of the morphisms are of a kind (``"split"``, ``"prune"``)."""
        return sum(score.morphism.kind == kind for score in self.taken)


def net_gain(score: Score, prices: Mapping[str, float]) -> float:
    """Returns the tradeoff ``-dL - sum_r lambda_r dR_r``: a morphism pays where it is above 0."""
    return -score.delta_loss - price(score, prices)


def price(score: Score, prices: Mapping[str, float]) -> float:
    """Returns ``sum_r lambda_r dR_r``: what the resources that a morphism takes are worth, in loss."""
    return sum(each * RESOURCES[name](score) for name, each in prices.items())


def left_out(score: Score, code: str, message: str) -> Remark:
    """Returns the remark on a morphism that is not taken."""
    morphism = score.morphism
    return Remark("missed", code, f"{morphism.kind}: {message}", morphism.space, morphism.index)


def select(
    scores: Iterable[Score],
    widths: Mapping[str, int],
    config: GrowthConfig,
    *,
    least: Mapping[str, int] | None = None,
    shares: Mapping[str, float] | None = None,
) -> Selection:
    """Chooses the morphisms that pay, whatever the budgets; the order of the scores does not matter.

    Args:
        scores: Every candidate.
        widths: Space name to its number of groups, in program order.
        config: What may be done, the prices, the share of each space and its least width.
        least: Space name to how many groups have to stay; one, or as many as the options say, where left out.
        shares: Space name to a factor on ``best_fraction``, from 0 to 1; 1 where left out.
    """
    spaces = {name: position for position, name in enumerate(widths)}
    ranked = [_Candidate(score, net_gain(score, config.prices)) for score in scores]
    ranked.sort(
        key=lambda c: (spaces[c.space], -c.gain if math.isfinite(c.gain) else math.inf, c.index, c.kind)
    )
    taken: list[_Candidate] = []
    remarks: list[Remark] = []
    for space, members in groupby(ranked, key=lambda candidate: candidate.space):
        paying = _paying(members, config, remarks)
        stay = max(config.min_width, (least or {}).get(space, 1))
        share = config.best_fraction * (shares or {}).get(space, 1.0)
        taken += _best(paying, widths[space] - stay, share, remarks)
    return Selection(tuple(candidate.score for candidate in taken), tuple(remarks))


def within_budgets(selection: Selection, config: GrowthConfig, measure: Measure) -> Selection:
    """Leaves out what gains least for its cost while the rest would use more than the budgets allow.

    Args:
        selection: What is to be applied.
        config: The budgets, and the prices that gains are reckoned with.
        measure: What the network would use, by resource name.
    """
    if not config.budgets:
        return selection
    candidates = [_Candidate(score, net_gain(score, config.prices)) for score in selection.taken]
    remarks: list[Remark] = []
    kept = _within_budgets(candidates, config.budgets, measure, remarks)
    return Selection(tuple(candidate.score for candidate in kept), (*selection.remarks, *remarks))


@dataclass(frozen=True)
class _Candidate:
    score: Score
    gain: float

    @property
    def space(self) -> str:
        return self.score.morphism.space

    @property
    def index(self) -> int:
        return self.score.morphism.index

    @property
    def kind(self) -> str:
        return self.score.morphism.kind

    def missed(self, code: str, message: str) -> Remark:
        return left_out(self.score, code, message)


def _paying(members: Iterable[_Candidate], config: GrowthConfig, remarks: list[Remark]) -> list[_Candidate]:
    """Keeps what pays, and of one group's morphisms the best; the members come best first."""
    allowed = {"split": config.splits, "prune": config.prunes}
    paying: dict[int, _Candidate] = {}
    for candidate in members:
        if not allowed.get(candidate.kind, True):
            remarks.append(candidate.missed("disabled", f"{candidate.kind}s are switched off"))
        elif not math.isfinite(candidate.gain):
            remarks.append(candidate.missed("not-finite", "its estimated change of the loss is not a number"))
        elif candidate.gain <= 0:
            remarks.append(
                candidate.missed("does-not-pay", f"costs {-candidate.gain:.3g} more than it gains")
            )
        elif candidate.index in paying:
            better = paying[candidate.index].kind
            remarks.append(candidate.missed("other-is-better", f"a {better} of the same group gains more"))
        else:
            paying[candidate.index] = candidate
    return list(paying.values())


def _best(
    paying: Sequence[_Candidate], prunable: int, share: float, remarks: list[Remark]
) -> list[_Candidate]:
    """Takes the best share, and no more prunes than may be."""
    quota = math.ceil(share * len(paying) - 1e-9)
    taken: list[_Candidate] = []
    for candidate in paying:
        if candidate.kind == "prune" and prunable <= 0:
            remarks.append(candidate.missed("min-width", "no more of its groups may go"))
        elif len(taken) >= quota:
            text = f"pays, but is not among the best {share:.0%} of its space"
            remarks.append(candidate.missed("not-among-best", text))
        else:
            taken.append(candidate)
            prunable -= candidate.kind == "prune"
    return taken


def _within_budgets(
    taken: Sequence[_Candidate],
    budgets: Mapping[str, float],
    measure: Measure,
    remarks: list[Remark],
) -> list[_Candidate]:
    """What frees resources first, then by gain per cost: the longest start of this order that fits."""
    order = sorted(taken, key=lambda candidate: -_gain_per_cost(candidate, budgets))

    def fits(count: int) -> bool:
        after = measure([candidate.score.morphism for candidate in order[:count]])
        return all(after[name] <= budget for name, budget in budgets.items())

    free = sum(not _cost(candidate, budgets) for candidate in order)
    count = _last_fitting(free, len(order), fits)
    kept = set(map(id, order[:count]))
    dropped = [candidate for candidate in taken if id(candidate) not in kept]
    remarks += [c.missed("over-budget", "pays, but the budget does not allow it") for c in dropped]
    return [candidate for candidate in taken if id(candidate) in kept]


def _cost(candidate: _Candidate, budgets: Mapping[str, float]) -> float:
    """Share of the budgets that the morphism takes; 0 for one that only frees."""
    return sum(max(RESOURCES[name](candidate.score), 0) / budget for name, budget in budgets.items())


def _gain_per_cost(candidate: _Candidate, budgets: Mapping[str, float]) -> float:
    cost = _cost(candidate, budgets)
    return candidate.gain / cost if cost else math.inf


def _last_fitting(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """Returns the largest count in [low, high] that fits, by bisection; ``low`` where none does."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
