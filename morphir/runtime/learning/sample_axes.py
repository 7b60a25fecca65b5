"""Along which dimension of a value the samples lie: another sample, another slice of the value.

A program may move its batch (``x.t()``, a sequence-first transformer), and no shape tells it from a channel
count that happens to be equal. So the program is run twice, the second time with another first sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from morphir.ir.graph import Graph
from morphir.runtime.learning.observation import batch_size, observe, random_inputs
from morphir.runtime.learning.working_copy import WorkingCopy

# Relative to a value's largest change: what a device adds up in another order is far below this.
_NOISE = 1e-4


class SampleAxes:
    """The dimension of the samples in every value of a program.

    Args:
        graph: The graph, for its example inputs.
        work: Its program.
    """

    def __init__(self, graph: Graph, work: WorkingCopy) -> None:
        self._changed: dict[fx.Node, list[torch.Tensor]] = {}
        self._samples = 1
        # The meta device has no values to compare; all of it is for trials of what runs where.
        if graph.device.type != "meta":
            self._run(graph, work)

    def of(self, node: fx.Node) -> int | None:
        """Returns the dimension; None where the samples lie along none, or not one after the other."""
        changed, samples = self._changed.get(node), self._samples
        if not changed or samples == 1:
            return 0
        first = changed[0]
        if first.shape[0] % samples == 0 and not first[first.shape[0] // samples :].any():
            return 0
        return next((d for d, c in enumerate(changed) if len(c) == samples and not c[1:].any()), None)

    def _run(self, graph: Graph, work: WorkingCopy) -> None:
        inputs = random_inputs(graph)
        self._samples = batch_size(inputs)
        before = observe(graph, work, inputs, _sums)
        after = observe(graph, work, pytree.tree_map(self._with_another_sample, inputs), _sums)
        for node, sums in before.items():
            changes = [(a - b).abs() for a, b in zip(sums, after[node], strict=True)]
            self._changed[node] = [(change > _NOISE * change.max()).cpu() for change in changes]

    def _with_another_sample(self, leaf: Any) -> Any:
        batched = isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == self._samples
        if not batched or not leaf.is_floating_point():
            return leaf
        changed = leaf.clone()
        changed[0] = 1 - leaf[0]
        return changed


def _sums(value: Any) -> list[torch.Tensor]:
    """Returns, for every dimension, the sums over all others: they tell which slices changed."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
        return []
    rank = value.dim()
    return [value.sum([d for d in range(rank) if d != dim]) if rank > 1 else value for dim in range(rank)]
