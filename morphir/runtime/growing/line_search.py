"""How far to go along theta when many morphisms are applied at once.

Each theta is learned as if its morphism were alone; applied together, their changes compound from layer to
layer. So the whole set is tried on copies of the graph with theta scaled by a few factors, and the best
factor is taken. The paper always goes all the way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from morphir.errors import RewriteError
from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.morphisms.split import Split
from passes.instruments import unobserved
from passes.transform import transform


@dataclass(frozen=True)
class Trial:
    """A set of morphisms and a factor that were tried.

    Attributes:
        factor: Factor on every theta.
        loss: Loss of the graph that all morphisms, so scaled, were applied to.
        splits: How many of them are splits.
        price: What the resources that they take are worth, in loss.
    """

    factor: float
    loss: float
    splits: int = 0
    price: float = 0.0

    @property
    def objective(self) -> float:
        """Loss and price: what the smallest is best of. Infinite where the loss is not a number."""
        return self.loss + self.price if math.isfinite(self.loss) else math.inf


def scaled(morphisms: Sequence[Morphism], factor: float) -> tuple[Morphism, ...]:
    """Returns the morphisms with every theta multiplied by ``factor``; prunes have none."""
    return tuple(_scale(m, factor) if isinstance(m, Split) and m.theta is not None else m for m in morphisms)


def _scale(split: Split, factor: float) -> Split:
    thetas = split.theta or {}
    return replace(split, theta={key: theta * factor for key, theta in thetas.items()})


def search(
    graph: Graph,
    morphisms: Sequence[Morphism],
    factors: Iterable[float],
    loss_of: Callable[[Graph], float],
    price: float = 0.0,
) -> tuple[Trial, ...]:
    """Tries every factor on a copy of the graph.

    Args:
        graph: Left as it is.
        morphisms: What is to be applied.
        factors: Which factors to try.
        loss_of: Evaluates a graph.
        price: What the resources that they take are worth, in loss.

    Returns:
        The trials, in the order of ``factors``; their loss is infinite where the rewriter refuses.
    """
    splits = sum(isinstance(morphism, Split) for morphism in morphisms)

    def attempt(factor: float) -> Trial:
        candidate = copy.deepcopy(graph)
        try:
            with unobserved():
                transform(candidate, scaled(morphisms, factor))
        except RewriteError:
            return Trial(factor, math.inf, splits, price)
        return Trial(factor, loss_of(candidate), splits, price)

    return tuple(map(attempt, factors))


def best(trials: Sequence[Trial]) -> Trial:
    """Returns the trial with the smallest loss and price, the first of equals; NaN is never the smallest."""
    return min(trials, key=lambda trial: trial.objective)
