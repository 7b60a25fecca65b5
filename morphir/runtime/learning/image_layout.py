"""Images channels last on a CPU, whatever their own format and the kernels': its convolutions are faster so.

PyTorch's compiler does the same for every convolution that it meets on a CPU. What a model computes does not
depend on where its numbers lie in memory, unless it asks (``as_strided``, ``stride``), or refuses (``view``).
A program that calls such an operator by name, or of which any value is another when it is run in both
formats, is left as it is; so is a batch with which it refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from morphir.ir.graph import Graph
from morphir.runtime.learning.observation import observe, random_inputs, weighted_sums
from morphir.runtime.learning.working_copy import WorkingCopy

# Relative to the largest of a value: convolutions of either format add up in another order.
_ROUNDING = 1e-3

_ASKS = frozenset(
    {"as_strided", "stride", "is_contiguous", "storage_offset", "data_ptr", "storage", "untyped_storage"}
)
"""Operators that tell where numbers lie."""


def prefers_channels_last(graph: Graph, work: WorkingCopy) -> bool:
    """Whether a program computes the same from images that lie channels last, and may be faster so."""
    if graph.device.type != "cpu" or not any(parameter.dim() == 4 for parameter in graph.parameters()):
        return False
    if any(_name(node) in _ASKS for node in work.module.graph.nodes):
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


def run_channels_last(program: Callable[..., Any], inputs: Sequence[Any]) -> Any:
    """Runs a program with every image channels last; on its inputs as they are if it refuses.

    At other sizes than the example's a view may want the other format.
    """
    try:
        return program(*_converted(list(inputs)))
    except RuntimeError:
        return program(*inputs)


def _converted(values: Any) -> Any:
    return pytree.tree_map(_laid_out, values)


def _name(node: fx.Node) -> str:
    """Returns what a node calls, without the overload that ATen's operators name."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.partition(".")[0]


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
