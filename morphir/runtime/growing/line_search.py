"""How far to go along theta when many morphisms are applied at once.

Each theta is learned as if its morphism were alone; applied together, their changes compound from layer to
layer. So the whole set is tried on copies of the graph with theta scaled by a few factors, and the best
factor is taken. The paper always goes all the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.morphisms.split import Split
from passes.instruments import unobserved
from passes.transform import transform


@dataclass(frozen=True)
class Trial:
    """One factor that was tried.

    Attributes:
        factor: Factor on every theta.
        loss: Loss of the graph that all morphisms, so scaled, were applied to.
    """

    factor: float
    loss: float


def scaled(morphisms: Sequence[Morphism], factor: float) -> tuple[Morphism, ...]:
    """Returns the morphisms with every theta multiplied by ``factor``; prunes have none."""
    return tuple(_scale(m, factor) if isinstance(m, Split) and m.theta is not None else m for m in morphisms)


def _scale(split: Split, factor: float) -> Split:
    thetas = split.theta or {}
    return replace(split, theta={key: theta * factor for key, theta in thetas.items()})


def search(
    graph: Graph, morphisms: Sequence[Morphism], factors: Sequence[float], loss_of: Callable[[Graph], float]
) -> tuple[Trial, ...]:
    """Tries every factor on a copy of the graph.

    Args:
        graph: Left as it is.
        morphisms: What is to be applied.
        factors: Which factors to try.
        loss_of: Evaluates a graph.

    Returns:
        The trials, in the order of ``factors``.
    """
    return tuple(_try(graph, morphisms, factor, loss_of) for factor in factors)


def _try(
    graph: Graph, morphisms: Sequence[Morphism], factor: float, loss_of: Callable[[Graph], float]
) -> Trial:
    candidate = copy.deepcopy(graph)
    with unobserved():
        transform(candidate, scaled(morphisms, factor))
    return Trial(factor, loss_of(candidate))


def best(trials: Sequence[Trial]) -> float:
    """Returns the factor with the smallest loss, the first of equals; NaN is never the smallest."""
    return min(trials, key=lambda trial: trial.loss if trial.loss == trial.loss else float("inf")).factor
