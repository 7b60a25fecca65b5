"""Along which dimension of a value the samples lie, and where they mix: another sample, another slice of it.

A program may move its batch (``x.t()``, a sequence-first transformer), and no shape tells it from a channel
count that happens to be equal. So the program is run again with another first sample, and with the first
sample alone as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.utils import _pytree as pytree

from morphir.ir.graph import Graph
from morphir.runtime.learning.observation import Inputs, batch_size, observe, random_inputs, weighted_sums
from morphir.runtime.learning.working_copy import WorkingCopy

# Relative to a value's largest change: what a device adds up in another order is far below this.
_NOISE = 1e-4


class SampleAxes:
    """The dimension of the samples in every value of a program, and where samples depend on each other.

    Args:
        graph: The graph, for its example inputs.
        work: Its program.
    """

    def __init__(self, graph: Graph, work: WorkingCopy) -> None:
        self._dims: dict[fx.Node, int | None] = {}
        self._mixed: set[fx.Node] = set()
        # The meta device has no values to compare; all of it is for trials of what runs where.
        if graph.device.type != "meta":
            self._find(graph, work)

    def of(self, node: fx.Node) -> int | None:
        """Returns the dimension; None where the samples lie along none, or not one after the other."""
        return self._dims.get(node, 0)

    def mix(self, node: fx.Node) -> bool:
        """Whether some sample's part of a value depends on another sample, as with batch statistics."""
        return node in self._mixed

    def _find(self, graph: Graph, work: WorkingCopy) -> None:
        inputs = random_inputs(graph)
        samples = batch_size(inputs)
        if samples == 1:
            twice = _run(graph, work, _doubled(inputs))
            if twice is None:
                self._guess(_run(graph, work, inputs) or {})
                return
            inputs, samples = _doubled(inputs), 2
        before = observe(graph, work, inputs, weighted_sums)
        first = observe(graph, work, _changed_inputs(inputs, samples, slice(0, 1)), weighted_sums)
        others = observe(graph, work, _changed_inputs(inputs, samples, slice(1, None)), weighted_sums)
        for node, sums in before.items():
            if not sums:
                continue
            by_first = list(map(_changed, sums, first[node]))
            by_others = list(map(_changed, sums, others[node]))
            dim = self._dims[node] = _dim(by_first, samples)
            # What is computed from parameters alone, or from what is no sample's, mixes nothing.
            if any(own.any() for own in (*by_first, *by_others)) and (
                dim is None or _mixes(dim, samples, by_first[dim], by_others[dim])
            ):
                self._mixed.add(node)

    def _guess(self, sums: Mapping[fx.Node, Sequence[torch.Tensor]]) -> None:
        """A program that takes one sample alone: where the first extent is another, nothing is known."""
        self._dims = {node: 0 if len(own[0]) == 1 else None for node, own in sums.items() if own}


def _run(graph: Graph, work: WorkingCopy, inputs: Inputs) -> Mapping[fx.Node, list[torch.Tensor]] | None:
    """Returns what :func:`weighted_sums` tells of each value; None where the program refuses the inputs."""
    try:
        return observe(graph, work, inputs, weighted_sums)
    except Exception:  # whatever an operator, or a guard, raises on an extent that does not fit
        return None


def _doubled(inputs: Inputs) -> Inputs:
    """Returns inputs of one sample with another one behind it."""

    def double(leaf: Any) -> Any:
        batched = isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == 1
        return torch.cat([leaf, 1 - leaf if leaf.is_floating_point() else leaf]) if batched else leaf

    return pytree.tree_map(double, inputs)


def _changed_inputs(inputs: Inputs, samples: int, which: slice) -> Inputs:
    return pytree.tree_map(partial(_with_other_samples, samples, which), inputs)


def _with_other_samples(samples: int, which: slice, leaf: Any) -> Any:
    batched = isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == samples
    if not batched or not leaf.is_floating_point():
        return leaf
    changed = leaf.clone()
    changed[which] = 1 - leaf[which]
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


def _mixes(dim: int, samples: int, by_first: NDArray[np.bool_], by_others: NDArray[np.bool_]) -> bool:
    """Whether the first sample's part changes with the other samples, or theirs with the first.

    Args:
        dim: The dimension of the samples, whose extent is theirs, or for the first one a multiple of it.
        samples: Number of samples.
        by_first: Which slices changed with the first sample.
        by_others: Which slices changed with all others.
    """
    own = len(by_first) // samples if dim == 0 else 1
    return bool(by_first[own:].any() or by_others[:own].any())
