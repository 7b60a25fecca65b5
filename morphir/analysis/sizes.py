"""Sizes that the program reads: a channel count that becomes a value changes the function with the channels.

``h.view(h.size(0), -1)`` follows any rewrite; ``torch.full_like(h, h.size(1))`` computes another function of
another number of channels. Every size is followed from where it is read. What shapes a tensor may take it;
arithmetic has a number of channels alone written down; anything else freezes the channels that it counts, and
so does control flow that asks for a count, which a guard holds.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.fx.node import map_arg
from torch.nn import functional

from morphir.analysis.arguments import VIEWS, size_arguments, source_name
from morphir.analysis.labels import (
    Facts,
    Labelled,
    Layer,
    Layers,
    compact,
    label_dims,
    vector_along,
)
from morphir.analysis.numbers import COUNTS_AS_NUMBERS, counts_channels_alone
from morphir.analysis.rules.operation import channel_vector
from morphir.analysis.subscripts import subscripts_of
from morphir.ir.guards import guard, is_guard
from morphir.ir.wrapped import is_wrapped

Sizes = dict[str, "tuple[Layers, ...]"]

_REST = -1
"""Stands for every argument after the first."""
_SHAPING: Mapping[Any, tuple[int | str, ...]] = {
    **dict.fromkeys(VIEWS, (_REST,)),
    **dict.fromkeys(("unflatten", "repeat", "tile", torch.unflatten, torch.tile), (_REST,)),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), (1, "split_size", "chunks")),
    **dict.fromkeys((torch.split, torch.chunk, torch.tensor_split), (1, "split_size_or_sections", "chunks")),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty"), (_REST,)),
    **dict.fromkeys((torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn), (0, _REST, "size")),
    **dict.fromkeys((torch.arange, torch.linspace), (0, _REST, "end", "steps")),
    **dict.fromkeys((functional.layer_norm, torch.layer_norm, functional.rms_norm), (1, "normalized_shape")),
    **dict.fromkeys((functional.group_norm, torch.group_norm), (1, "num_groups")),
    functional.interpolate: (1, "size"),
    **dict.fromkeys((functional.conv1d, functional.conv2d, functional.conv3d), (6, "groups")),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), (6, "groups")),
    **dict.fromkeys(
        (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
        (6, "groups"),
    ),
}
"""Function or method to the arguments that lay out its result or its groups; a size elsewhere is a value."""
_HARMLESS = frozenset(
    ("dim", "ndimension", "ndim", "type", "dtype", "device", "layout", "get_device", "element_size")
)
"""What is asked of a tensor and says nothing of its size; so does all that begins with ``is_``."""


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
    read = _read(node, labelled) if _computes(node) else None
    used = [layers for source in node.all_input_nodes for layers in sizes.get(source.name, ())]
    if read is not None:
        sizes[node.name] = read
    elif used and not labelled[node.name] and _computes(node):
        sizes[node.name] = _passed(node, sizes, used)
    elif used:
        given = [source for source in node.all_input_nodes if source.name in sizes]
        if node.target in COUNTS_AS_NUMBERS:
            given = [source for source in given if not _counts_channels_alone(source, labelled)]
        _freeze_values(node, given, labelled, sizes, facts)
        _follow_shape(node, given, labelled, sizes, facts)


def _computes(node: fx.Node) -> bool:
    """Whether a node that yields no tensor makes a number; what a user's function does is unknown."""
    return not is_wrapped(node) and node.target is not operator.setitem


def _freeze_values(
    node: fx.Node, given: Sequence[fx.Node], labelled: Labelled, sizes: Sizes, facts: Facts
) -> None:
    """Freezes channels whose number is used where it does not lay out what the node yields."""
    shaping = set(_shaping(node, labelled))
    for source in given:
        if source not in shaping:
            layers = [layer for part in sizes[source.name] for layer in part]
            reason = "their number is used as a value, not as a shape"
            facts.restrict(layers, "frozen", "size-as-value", reason, node.name)


def _shaping(node: fx.Node, labelled: Labelled) -> Iterator[fx.Node]:
    """Yields the nodes whose value lays out what a node yields, among its arguments."""
    if node.target is operator.getitem:
        values = labelled.get(source_name(node), ())
        if len(values) == 1:
            for subscript in subscripts_of(node, len(values[0].shape)):
                along = any(subscript.dim in label_dims(layer) for layer in values[0].layers)
                if along and type(subscript.item) is slice:
                    yield from (
                        n for n in (subscript.item.start, subscript.item.stop) if isinstance(n, fx.Node)
                    )
        return
    places = _SHAPING.get(node.target, ())
    given = [node.args[place : place + 1] for place in places if isinstance(place, int) and place >= 0]
    given += [node.args[1:]] if _REST in places else []
    given += [(node.kwargs[place],) for place in places if place in node.kwargs]
    if _REST in places:
        given.append(tuple(node.kwargs.values()))
    found: list[fx.Node] = []
    map_arg(tuple(given), lambda part: found.append(part) or part)
    yield from found


def _follow_shape(
    node: fx.Node, given: Sequence[fx.Node], labelled: Labelled, sizes: Sizes, facts: Facts
) -> None:
    """Keeps channels and those whose number lays them out equally many, or freezes what is counted."""
    results = labelled[node.name]
    present = np.concatenate([_labels(x) for value in results for x in value.layers] or [np.empty(0)])
    for source in given:
        for part, layers in enumerate(sizes[source.name]):
            for layer in layers:
                if not np.isin(_labels(layer), present).any():
                    _tie_to_shaped(_Shaping(node, source, part, layer), labelled, facts)


def _labels(layer: Layer) -> NDArray[np.int64]:
    return compact(layer).reshape(-1).numpy()


@dataclass(frozen=True)
class _Shaping:
    """A size that shapes a value which does not hold the channels that it counts.

    Attributes:
        node: Yields the value.
        source: Reads or computes the size.
        part: Which of several sizes that ``source`` yields.
        counted: The channels that are counted.
    """

    node: fx.Node
    source: fx.Node
    part: int
    counted: Layer


def _tie_to_shaped(shaping: _Shaping, labelled: Labelled, facts: Facts) -> None:
    """Ties nothing to a view whose size counts channels alone: a rewrite writes it down."""
    node, results = shaping.node, labelled[shaping.node.name]
    sizes, _ = size_arguments(node)
    given = shaping.source in sizes
    if given and node.target in VIEWS and _counts_channels_alone(shaping.source, labelled):
        return
    dim = shaping.part if sizes == [shaping.source] else sizes.index(shaping.source) if given else -1
    dim = dim if _REST in _SHAPING.get(node.target, ()) else -1
    counted = label_dims(shaping.counted)
    if 0 <= dim < len(results[0].shape) and len(results) == len(counted) == 1:
        shaped = channel_vector(results[0].layers, dim, facts, node.name)
        vector = vector_along(shaping.counted, counted[0])
        if shaped is not None and shaped.shape == vector.shape:
            facts.tie(shaped, vector, "same-count", node.name)
            return
    reason = "their number shapes a value that has other channels, or none"
    facts.restrict((shaping.counted,), "frozen", "size-as-value", reason, node.name)


def _counts_channels_alone(size: fx.Node, labelled: Labelled) -> bool:
    def extents(name: str) -> Sequence[int] | None:
        return labelled[name][0].shape if len(labelled.get(name, ())) == 1 else None

    def channel_dims(name: str) -> set[int]:
        return {
            dim for value in labelled.get(name, ()) for layer in value.layers for dim in label_dims(layer)
        }

    return counts_channels_alone(size, extents, channel_dims)


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
        asked = node.args[1] if node.target is getattr else node.target
        says_nothing = str(asked) in _HARMLESS or str(asked).startswith("is_")
        return None if labelled[node.name] or says_nothing else (value.layers,)
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
