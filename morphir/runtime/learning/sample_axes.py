"""Along which dimension of a value the samples lie: another sample, another slice of the value.

A program may move its batch (``x.t()``, a sequence-first transformer), and no shape tells it from a channel
count that happens to be equal. So the program is run twice, the second time with another first sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
        # The meta device has no values to compare; all of it is for trials of what runs where.
        self._dims: dict[fx.Node, int | None] = {} if graph.device.type == "meta" else _find(graph, work)

    def of(self, node: fx.Node) -> int | None:
        """Returns the dimension; None where the samples lie along none, or not one after the other."""
        return self._dims.get(node, 0)


def _find(graph: Graph, work: WorkingCopy) -> dict[fx.Node, int | None]:
    inputs = random_inputs(graph)
    samples = batch_size(inputs)
    if samples == 1:
        return {}
    before = observe(graph, work, inputs, _sums)
    after = observe(graph, work, pytree.tree_map(partial(_with_another_sample, samples), inputs), _sums)
    return {
        node: _dim(list(map(_changed, sums, after[node])), samples) for node, sums in before.items() if sums
    }


def _with_another_sample(samples: int, leaf: Any) -> Any:
    batched = isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == samples
    if not batched or not leaf.is_floating_point():
        return leaf
    changed = leaf.clone()
    changed[0] = 1 - leaf[0]
    return changed


def _changed(before: torch.Tensor, after: torch.Tensor) -> NDArray[np.bool_]:
    change = (before - after).abs()
    return (change > _NOISE * change.max()).cpu().numpy()


def _dim(changed: Sequence[NDArray[np.bool_]], samples: int) -> int | None:
    """Returns the dimension of which the first sample's part, and nothing else, changed.

    Where every sample depends on every other (batch statistics), all that is left to go by is the extent.
    """
    mixed = all(own.all() for own in changed)
    first = changed[0]
    if len(first) % samples == 0 and (mixed or not first[len(first) // samples :].any()):
        return 0
    return next(
        (d for d, own in enumerate(changed) if len(own) == samples and (mixed or not own[1:].any())), None
    )


def _sums(value: Any) -> list[torch.Tensor]:
    """Returns, for every dimension, the sums over all others: they tell which slices changed."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
        return []
    rank = value.dim()
    return [value.sum([d for d in range(rank) if d != dim]) if rank > 1 else value for dim in range(rank)]
