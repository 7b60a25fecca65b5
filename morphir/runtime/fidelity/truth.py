"""The true change of the loss: each morphism applied alone, by the passes, and the network evaluated."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch

from morphir.ir.graph import Graph
from morphir.ir.state import evaluation_mode
from morphir.morphisms.base import Morphism
from morphir.runtime.growing.training import Batches, Loss, Placement, call
from morphir.runtime.learning.batches import batch_samples
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
    before = _mean_loss(graph, batches, loss, placement)
    for morphism in morphisms:
        changed = copy.deepcopy(graph)
        transform(changed, [morphism])
        yield _mean_loss(changed, batches, loss, placement) - before


@torch.no_grad()
def _mean_loss(graph: Graph, batches: Batches, loss: Loss, placement: Placement) -> float:
    """Returns the mean over the samples, summed in float64: what is compared are small differences."""
    total, samples = 0.0, 0
    with evaluation_mode(graph):
        for inputs, targets in batches:
            count = batch_samples(inputs)
            with placement.autocast():
                value = loss(call(graph, placement.move(inputs)), placement.move(targets))
            total += float(value.double().mean()) * count
            samples += count
    return total / samples
