"""Sizes that the program reads: a channel count that becomes a value changes the function with the channels.

``h.view(h.size(0), -1)`` follows any rewrite; ``h * h.size(1) ** -0.5`` computes another function of another
number of channels. Every size is followed from where it is read; what shapes a tensor may take it, anything
else freezes the channels that it counts. So does control flow that asks for a count, which a guard holds.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.nn import functional

from morphir.analysis.arguments import size_arguments
from morphir.analysis.labels import Facts, LabelledValue, Layer, Layers, compact, label_dims, vector_along
from morphir.analysis.rules.operation import channel_vector
from morphir.ir.guards import guard, is_guard

Labelled = Mapping[str, Sequence[LabelledValue]]
Sizes = dict[str, "tuple[Layers, ...]"]

_METHODS = frozenset(
    (
        *("view", "reshape", "expand", "broadcast_to", "unflatten", "repeat", "narrow", "roll", "tile"),
        *("split", "split_with_sizes", "chunk", "tensor_split", "new_zeros", "new_ones", "new_empty"),
    )
)
_FUNCTIONS: tuple[Any, ...] = (
    *(operator.getitem, torch.reshape, torch.Tensor.view, torch.broadcast_to, torch.unflatten),
    *(torch.split, torch.chunk, torch.tensor_split, torch.narrow, torch.roll, torch.tile),
    *(torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn, torch.arange, torch.linspace),
    *(functional.layer_norm, torch.layer_norm, functional.rms_norm, functional.interpolate),
    *(functional.conv1d, functional.conv2d, functional.conv3d, torch.conv1d, torch.conv2d, torch.conv3d),
    *(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
)


def follow_sizes(node: fx.Node, labelled: Labelled, sizes: Sizes, facts: Facts) -> None:
    """Notes which channels the sizes that ``node`` yields count, and freezes those that become a value.

    Args:
        node: The node that just ran.
        labelled: Node name to the tensors that it yields.
        sizes: Node name to the layers that each of its sizes counts; the node's own are added.
        facts: Takes the restrictions.
    """
    if is_guard(node):
        _follow_guard(node, sizes, facts)
        return
    read = _read(node, labelled)
    used = [layers for source in node.all_input_nodes for layers in sizes.get(source.name, ())]
    if read is not None:
        sizes[node.name] = read
    elif used and not labelled[node.name]:
        sizes[node.name] = _passed(node, sizes, used)
    elif used and not _takes_sizes(node):
        layers = [layer for part in used for layer in part]
        facts.restrict(
            layers, "frozen", "size-as-value", "their number is used as a value, not as a shape", node.name
        )
    elif used and node.op != "output":
        _follow_shape(node, labelled[node.name], sizes, facts)


def _follow_shape(node: fx.Node, results: Sequence[LabelledValue], sizes: Sizes, facts: Facts) -> None:
    """Keeps channels and those whose number lays them out equally many, or freezes what is counted."""
    present = np.concatenate([_labels(x) for value in results for x in value.layers] or [np.empty(0)])
    for source in node.all_input_nodes:
        for part, layers in enumerate(sizes.get(source.name, ())):
            for layer in layers:
                if not np.isin(_labels(layer), present).any():
                    _tie_to_shaped(node, source, part, layer, results, facts)


def _labels(layer: Layer) -> NDArray[np.int64]:
    return compact(layer).reshape(-1).numpy()


def _tie_to_shaped(
    node: fx.Node, source: fx.Node, part: int, layer: Layer, results: Sequence[LabelledValue], facts: Facts
) -> None:
    sizes, _ = size_arguments(node)
    dim = part if sizes == [source] else sizes.index(source) if source in sizes else -1
    counted = label_dims(layer)
    if 0 <= dim < len(results[0].shape) and len(results) == len(counted) == 1:
        shaped = channel_vector(results[0].layers, dim, facts, node.name)
        vector = vector_along(layer, counted[0])
        if shaped is not None and shaped.shape == vector.shape:
            facts.tie(shaped, vector, "same-count", node.name)
            return
    reason = "their number shapes a value that has other channels, or none"
    facts.restrict((layer,), "frozen", "size-as-value", reason, node.name)


def _follow_guard(node: fx.Node, sizes: Sizes, facts: Facts) -> None:
    """Freezes the channels whose number the program's path hangs on; equal numbers are tied instead."""
    question = node.args[1] if node.target is guard else "truth"
    if question not in {"truth", "value"} or not isinstance(node.args[0], fx.Node):
        return
    counted = sizes.get(node.args[0].name, ())
    pairs = _equal_counts(node, sizes)
    for left, right in pairs:
        facts.tie(left, right, "equal-counts", node.name)
    if not pairs:
        layers = [layer for part in counted for layer in part]
        reason = "the program takes the path that it does because of their number"
        facts.restrict(layers, "frozen", "size-as-value", reason, node.name)


def _equal_counts(node: fx.Node, sizes: Sizes) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns what to tie for ``a.shape == b.shape`` to hold on; nothing where the guard says otherwise."""
    compared, expected = cast("fx.Node", node.args[0]), node.args[2] if node.target is guard else True
    if (compared.target, expected) not in {(operator.eq, True), (operator.ne, False)}:
        return []
    left, right = (sizes.get(a.name) if isinstance(a, fx.Node) else None for a in compared.args)
    if left is None or right is None or len(left) != len(right):
        return []
    pairs = [(_vector(a), _vector(b)) for a, b in zip(left, right, strict=True) if a or b]
    whole = [(a, b) for a, b in pairs if a is not None and b is not None and a.shape == b.shape]
    return whole if len(whole) == len(pairs) else []


def _vector(layers: Layers) -> torch.Tensor | None:
    """Returns the labels along the one dimension that a single layer is laid along."""
    flat = [compact(layer).reshape(-1) for layer in layers if len(label_dims(layer)) == 1]
    return flat[0] if len(flat) == len(layers) == 1 else None


def _read(node: fx.Node, labelled: Labelled) -> tuple[Layers, ...] | None:
    """Returns the layers along each dimension that is read; None where the node reads no size."""
    source = node.args[0] if node.args else None
    values = labelled.get(source.name, ()) if isinstance(source, fx.Node) else ()
    if len(values) != 1:
        return None
    (value,) = values
    if (node.op == "call_method" and node.target in {"numel", "nelement"}) or node.target is torch.numel:
        return (value.layers,)
    every = tuple(tuple(x for x in value.layers if dim in label_dims(x)) for dim in range(len(value.shape)))
    if node.target is getattr and node.args[1] == "shape":
        return every
    if node.op != "call_method" or node.target != "size":
        return None
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return (every[dim],) if isinstance(dim, int) else every


def _passed(node: fx.Node, sizes: Sizes, used: Sequence[Layers]) -> tuple[Layers, ...]:
    """Picks from several sizes, or gathers what a number computed from sizes counts."""
    source = node.args[0]
    if node.target is operator.getitem and isinstance(source, fx.Node) and source.name in sizes:
        index: Any = node.args[1]
        if isinstance(index, int):
            return (sizes[source.name][index],)
        if (
            type(index) is slice
            and not isinstance(index.start, fx.Node)
            and not isinstance(index.stop, fx.Node)
        ):
            return sizes[source.name][index]
    return (tuple(layer for layers in used for layer in layers),)


def _takes_sizes(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METHODS
    return node.op == "output" or node.target in _FUNCTIONS
