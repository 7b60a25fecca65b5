"""Images channels last on a CPU, whatever their own format and the kernels': its convolutions are faster so.

PyTorch's compiler does the same for every convolution that it meets on a CPU. What a model computes does not
depend on where its numbers lie in memory, unless it asks (``as_strided``, ``stride``), or refuses (``view``);
so the program is run in both formats, and left as it is where any value is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from morphir.ir.graph import Graph
from morphir.runtime.learning.observation import observe, random_inputs, weighted_sums
from morphir.runtime.learning.working_copy import WorkingCopy

# Relative to the largest of a value: convolutions of either format add up in another order.
_ROUNDING = 1e-3


def prefers_channels_last(graph: Graph, work: WorkingCopy) -> bool:
    """Whether a program computes the same from images that lie channels last, and may be faster so."""
    if graph.device.type != "cpu" or not any(parameter.dim() == 4 for parameter in graph.parameters()):
        return False
    inputs = random_inputs(graph)
    if not any(map(_is_image, pytree.tree_leaves(inputs))):
        return False
    try:
        found = observe(graph, work, _converted(inputs), weighted_sums)
    except Exception:  # whatever a view, a kernel or a guard raises on a format that it does not take
        return False
    expected = observe(graph, work, inputs, weighted_sums)
    return all(
        _is_same(one, other)
        for node, sums in expected.items()
        for one, other in zip(sums, found[node], strict=True)
    )


def channels_last(values: Sequence[Any]) -> list[Any]:
    """Returns values with every image in them channels last, copied where it is not."""
    return [_converted(value) for value in values]


def _converted(values: Any) -> Any:
    return pytree.tree_map(_laid_out, values)


def _is_image(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() == 4 and leaf.is_floating_point()


def _laid_out(leaf: Any) -> Any:
    if not _is_image(leaf):
        return leaf
    _, channels, height, width = leaf.shape
    strides = (height * width * channels, 1, width * channels, channels)
    if leaf.stride() == strides:
        return leaf
    # Of one channel both formats are the same to ``to(memory_format=...)``, but not to a convolution.
    return torch.empty_strided(leaf.shape, strides, dtype=leaf.dtype, device=leaf.device).copy_(leaf)


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    scale = float(one.nan_to_num().abs().max())
    return torch.allclose(one, other, rtol=0, atol=_ROUNDING * scale, equal_nan=True)
