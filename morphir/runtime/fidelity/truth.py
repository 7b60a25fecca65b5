"""The true change of the loss: each morphism applied alone, by the passes, and the network evaluated."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.runtime.growing.training import Batches, Loss, Placement, evaluate
from passes.transform import transform


def true_changes(
    graph: Graph, morphisms: Iterable[Morphism], batches: Batches, loss: Loss, placement: Placement
) -> Iterator[float]:
    """Yields, for each morphism, the mean loss with it alone less the mean loss without.

    Args:
        graph: Left as it is.
        morphisms: What to apply, one at a time.
        batches: The data that the loss is the mean over.
        loss: Of outputs and targets.
        placement: Device, autocast, memory format.
    """
    before = evaluate(graph, batches, loss, placement).loss
    for morphism in morphisms:
        changed = copy.deepcopy(graph)
        transform(changed, [morphism])
        yield evaluate(changed, batches, loss, placement).loss - before
