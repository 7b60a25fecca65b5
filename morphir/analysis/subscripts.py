"""Subscripts: slices, single channels and index lists in brackets, and how their literals follow a rewrite.

A slice with a step takes one channel from each block of ``step``: the block goes together, and the bounds
move with the blocks. A bound that the program computes follows by itself where it is a fixed share of the
number of channels, as the half is: then the channels of the same place in each share go together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import fx

from morphir.analysis.arguments import source_name
from morphir.analysis.cuts import (
    Taken,
    literal_index,
    moved_position,
    require_own_index,
    rewrite_index,
)
from morphir.analysis.labels import Facts, Labelled, LabelledValue, label_dims
from morphir.analysis.numbers import evaluate
from morphir.analysis.rules.operation import channel_vector
from morphir.ir.channels import ChannelLayer, Value
from morphir.ir.index_map import Copies


@dataclass(frozen=True)
class Subscript:
    """One item of a subscript: where it stands in the subscript, and the dimension that it indexes."""

    position: int
    dim: int
    item: Any


def _items(node: fx.Node) -> list[Any]:
    index = node.args[1]
    return list(cast("tuple[Any, ...]", index)) if isinstance(index, tuple) else [index]


def subscripts_of(node: fx.Node, rank: int) -> list[Subscript]:
    """Returns the items of a subscript that index a dimension."""
    items = _items(node)
    taken = sum(item is not None and item is not ... for item in items)
    found: list[Subscript] = []
    dim = 0
    for position, item in enumerate(items):
        if item is ...:
            dim += rank - taken
        elif item is not None:
            found.append(Subscript(position, dim, item))
            dim += 1
    return found


def constrain_subscript(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """Adds what the literals between brackets demand of the channels that they index."""
    values = labelled.get(source_name(node), ())
    if len(values) != 1:
        return
    for subscript in subscripts_of(node, len(values[0].shape)):
        if not any(subscript.dim in label_dims(layer) for layer in values[0].layers):
            continue
        if type(subscript.item) is slice:
            _constrain_slice(subscript, values[0], node, labelled, facts)
        elif _is_index(subscript.item, labelled):
            require_own_index(subscript.item, node, labelled, facts, subscript.dim)
        elif not isinstance(subscript.item, int):
            _freeze(subscript, values[0], node, facts)


def _is_index(item: object, labelled: Labelled) -> bool:
    return isinstance(item, (list, tuple)) or (isinstance(item, fx.Node) and bool(labelled.get(item.name)))


def constrain_assignment(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """Freezes channels of which some are assigned to by position: their copies would not be."""
    for value in labelled.get(source_name(node), ()):
        picked = {
            subscript.dim
            for subscript in subscripts_of(node, len(value.shape))
            if not _takes_all(subscript.item)
        }
        layers = [layer for layer in value.layers if picked & set(label_dims(layer))]
        reason = "some of them are assigned to by their positions"
        facts.restrict(layers, "frozen", "in-place-write", reason, node.name)


def _takes_all(item: Any) -> bool:
    """Whether a slice takes every position, in order, whatever their number."""
    if type(item) is not slice:
        return False
    return item.start in {None, 0} and item.stop is None and item.step in {None, 1}


def _freeze(subscript: Subscript, value: LabelledValue, node: fx.Node, facts: Facts) -> None:
    layers = [layer for layer in value.layers if subscript.dim in label_dims(layer)]
    facts.restrict(layers, "frozen", "computed-slice", "sliced in a way that does not follow", node.name)


def _constrain_slice(
    subscript: Subscript, value: LabelledValue, node: fx.Node, labelled: Labelled, facts: Facts
) -> None:
    bounds = [subscript.item.start, subscript.item.stop]
    step = subscript.item.step or 1
    computed = [bound for bound in bounds if isinstance(bound, fx.Node)]
    if isinstance(step, fx.Node) or (computed and step != 1):
        _freeze(subscript, value, node, facts)
    elif computed:
        _tie_shares(subscript, value, computed, node, labelled, facts)
    elif step > 1:
        _tie_blocks(subscript, value, step, node, facts)


def _tie_blocks(subscript: Subscript, value: LabelledValue, step: int, node: fx.Node, facts: Facts) -> None:
    """Ties every whole block of ``step`` channels; the rest at the end has no block to grow by."""
    vector = channel_vector(value.layers, subscript.dim, facts, node.name)
    assert vector is not None
    whole = vector.numel() // step * step
    blocks = vector[:whole].reshape(-1, step)
    facts.tie(blocks, blocks[:, :1].expand_as(blocks), "same-block", node.name)
    reason = f"the rest that slices of step {step} leave"
    facts.restrict([vector[whole:]], "frozen", "strided-slice", reason, node.name)


def _tie_shares(
    subscript: Subscript,
    value: LabelledValue,
    computed: Sequence[fx.Node],
    node: fx.Node,
    labelled: Labelled,
    facts: Facts,
) -> None:
    """Ties the channels of the same place in each share, where all bounds lie between shares."""
    vector = channel_vector(value.layers, subscript.dim, facts, node.name)
    assert vector is not None
    extent = vector.numel()
    bounds = [_evaluated(bound, 1, labelled) for bound in computed]
    literal = [b for b in (subscript.item.start, subscript.item.stop) if isinstance(b, int) and b != 0]
    shares = [extent // bound for bound in bounds if bound and bound > 0 and extent % bound == 0]
    grows = all(
        _evaluated(bound, factor, labelled) == factor * size
        for bound, size in zip(computed, bounds, strict=True)
        if size is not None
        for factor in (2, 3)
    )
    if literal or not grows or len(shares) < len(computed):
        _freeze(subscript, value, node, facts)
        return
    by_share = vector.reshape(max(shares), -1)
    facts.tie(by_share, by_share[:1].expand_as(by_share), "equal-chunks", node.name)


def _evaluated(item: object, factor: int, labelled: Labelled) -> int | None:
    """Returns what a number would be, were every dimension ``factor`` times as large."""

    def extents(name: str) -> list[int] | None:
        values = labelled.get(name, ())
        return [extent * factor for extent in values[0].shape] if len(values) == 1 else None

    return evaluate(item, extents)


def rewrite_subscript(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """Moves the literals between brackets with the channels that they separate."""
    values = layer.values.get(source_name(node), ())
    if len(values) != 1:
        return
    items = _items(node)
    for subscript in subscripts_of(node, len(values[0].shape)):
        weights = values[0].copies_along(subscript.dim, copies)
        if set(weights) != {1}:
            items[subscript.position] = _moved(subscript.item, weights)
    node.update_arg(1, tuple(items) if isinstance(node.args[1], tuple) else items[0])


def subscript_taken(node: fx.Node, value: Value, results: Sequence[Value]) -> Iterator[Taken]:
    """What the literal slices and index lists between brackets take."""
    del results
    for subscript in subscripts_of(node, len(value.shape)):
        extent = value.shape[subscript.dim]
        if type(subscript.item) is slice:
            bounds = (subscript.item.start, subscript.item.stop, subscript.item.step)
            if not any(isinstance(bound, fx.Node) for bound in bounds):
                yield 0, subscript.dim, np.arange(extent)[subscript.item]
        elif (index := literal_index(subscript.item)) is not None:
            yield 0, subscript.dim, np.asarray(index, np.int64) % extent


def _moved(item: Any, weights: Sequence[int]) -> Any:
    if type(item) is int:
        return moved_position(item, weights)
    if type(item) is slice:
        computed = isinstance(item.start, fx.Node) or isinstance(item.stop, fx.Node)
        return item if computed else _moved_slice(item, weights)
    return rewrite_index(item, weights)


def _moved_slice(item: slice[int | None, int | None, int | None], weights: Sequence[int]) -> Any:
    """Moves the bounds of a slice with the blocks of ``step`` channels that they separate."""
    start, stop, step = item.indices(len(weights))
    taken = range(start, stop, step)
    if not taken:
        return item
    first, end = taken[0] // step * step, (taken[-1] // step + 1) * step
    moved_start = None if item.start is None else sum(weights[:first]) + start % step
    moved_stop = None if item.stop is None else sum(weights[:end])
    return slice(moved_start, moved_stop, item.step)
