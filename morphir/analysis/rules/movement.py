"""Data movement: the operator is executed on the label tensor itself, and so is its own rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch.utils import _pytree as pytree

from morphir.analysis.labels import (
    NO_LABEL,
    Facts,
    Layer,
    Layers,
    compact,
    label_dims,
    normalise,
    spread,
    vector_along,
)
from morphir.analysis.rules.operation import Operation, Outcome, rule
from morphir.analysis.rules.pointwise import unify

_VIEWS = frozenset({"view", "_unsafe_view", "reshape"})

_IN_PLACE_OF_DIMS = frozenset({"roll", "flip"})
"""Operators that leave every dimension where it is: a single channel stays what it was."""


@rule("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "squeeze", "slice", "select")
@rule("split", "split_with_sizes", "unbind", "chunk", "flip", "roll", "narrow", "unfold", "movedim")
def move(op: Operation, facts: Facts) -> Outcome:
    """Runs a one-tensor operator on each layer."""
    moved = [_moved_outputs(op, layer) for layer in op.layers_of(op.args[0])]
    return Outcome(
        [
            (out, _told_apart([results[at] for results in moved], facts, op.node))
            for at, out in enumerate(op.tensor_outputs)
        ]
    )


@rule("diagonal")
def diagonal(op: Operation, facts: Facts) -> Outcome:
    """Keeps what does not vary along the two dimensions; a channel on a diagonal has a position, too."""
    source: torch.Tensor = op.args[0]
    taken = {op.argument("dim1", 0) % source.dim(), op.argument("dim2", 1) % source.dim()}
    across = [layer for layer in op.layers_of(source) if taken & set(label_dims(layer))]
    reason = "picked along a diagonal, by their position"
    facts.restrict(across, "frozen", "picked-by-position", reason, op.node)
    kept = [layer for layer in op.layers_of(source) if not taken & set(label_dims(layer))]
    moved = [_moved_outputs(op, layer)[0] for layer in kept]
    return Outcome([(op.result, _told_apart(moved, facts, op.node))])


def _told_apart(layers: Sequence[Layer], facts: Facts, node: str) -> Layers:
    """Drops and freezes a layer whose one channel lost its dimension, or that came to lie along another's."""
    kept: list[Layer] = []
    for layer in layers:
        dims = set(label_dims(layer))
        if not dims:
            reason = "a single channel is singled out"
            facts.restrict((layer,), "frozen", "single-channel", reason, node)
        elif any(dims & set(label_dims(other)) for other in kept):
            reason = "laid along one dimension together with other channels"
            facts.restrict((layer,), "frozen", "merged-dimensions", reason, node)
        else:
            kept.append(layer)
    return tuple(kept)


def _moved_outputs(op: Operation, layer: Layer) -> list[Layer]:
    """Moves a layer, by its positions where its labels do not tell: a channel may be there several times.

    Copies of one channel side by side do not vary, so that nothing would say along which dimension they lie.
    """
    if not _is_repeated(layer):
        results, count = _moved(op, layer), len(label_dims(layer))
        if all(len(label_dims(result)) >= count for result in results):
            return results
    labels, dims = compact(layer), label_dims(layer)
    positions = torch.arange(labels.numel()).reshape(labels.shape)
    strides = [stride if dim in dims else 0 for dim, stride in enumerate(positions.stride())]
    positions = positions.as_strided(layer.shape, strides)
    return [_labelled(moved, labels.reshape(-1)) for moved in _moved(op, positions)]


def _is_repeated(layer: Layer) -> bool:
    labels = compact(layer)
    return any(
        labels.shape[dim] > 1 and bool((labels == labels.narrow(dim, 0, 1)).all())
        for dim in label_dims(layer)
    )


def _labelled(positions: Layer, labels: torch.Tensor) -> Layer:
    """Puts labels in the place of positions."""
    named, dims = labels[compact(positions)].contiguous(), label_dims(positions)
    strides = [stride if dim in dims else 0 for dim, stride in enumerate(named.stride())]
    return named.as_strided(positions.shape, strides)


def _moved(op: Operation, layer: Layer) -> list[Layer]:
    dims = label_dims(layer)
    if op.name in _IN_PLACE_OF_DIMS and len(dims) == 1 and layer.shape[dims[0]] == 1:
        return [layer]
    if op.name in _VIEWS:
        shape = tuple(op.result.shape)
        alone = len(dims) == 1 and layer.shape[dims[0]] == 1
        return [_viewed_lone_channel(layer, dims[0], shape) if alone else _viewed(layer, shape)]
    results = pytree.tree_leaves(op.func(layer, *op.args[1:], **op.kwargs))
    here = layer.untyped_storage().data_ptr()
    return [normalise(result, copied=result.untyped_storage().data_ptr() != here) for result in results]


def _viewed(layer: Layer, shape: tuple[int, ...]) -> Layer:
    """Gives a layer another shape; on labels a view may need a copy, since strides of 0 rarely survive it."""
    try:
        return normalise(layer.view(shape), copied=False)
    except RuntimeError:
        return normalise(_copied_view(layer, shape), copied=True)


def _copied_view(layer: Layer, shape: tuple[int, ...]) -> Layer:
    """Copies a layer into another shape; extent 1 wherever nothing varies among what is merged or cut."""
    if not layer.numel():
        return layer.reshape(shape)
    small, viewed = list(layer.shape), list(shape)
    for read, written in _runs(layer.shape, shape):
        if all(layer.shape[dim] == 1 or layer.stride(dim) == 0 for dim in read):
            for dim in read:
                small[dim] = 1
            for dim in written:
                viewed[dim] = 1
    taken = layer[tuple(slice(0, extent) for extent in small)]
    return taken.reshape(viewed).expand(shape)


def _runs(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yields the shortest runs of dimensions of two shapes, none of them empty in size, that hold as much."""
    read: list[int] = []
    written: list[int] = []
    size = filled = 1
    ahead = iter(range(len(after)))
    for dim, extent in enumerate(before):
        read.append(dim)
        size *= extent
        while filled < size:
            written.append(place := next(ahead))
            filled *= after[place]
        if filled == size:
            yield read, written
            read, written, size, filled = [], [], 1, 1
    yield read, [*written, *ahead]


def _viewed_lone_channel(layer: Layer, dim: int, shape: tuple[int, ...]) -> Layer:
    """Lays a single channel along the dimension of extent 1 that stands where its dimension stood.

    Its labels say nothing about where it went, since nothing varies; the number of elements after it does.
    """
    after = prod(layer.shape[dim + 1 :])
    places = [d for d, extent in enumerate(shape) if extent == 1 and prod(shape[d + 1 :]) == after]
    if not places:
        return _merged_lone_channel(layer, after, shape)
    place = dim if dim in places else places[0]
    return layer.as_strided(shape, [int(d == place) for d in range(len(shape))], layer.storage_offset())


def _merged_lone_channel(layer: Layer, after: int, shape: tuple[int, ...]) -> Layer:
    """Lays a single channel along the dimension that its own was flattened into, with what came after it."""
    ends = [prod(shape[d + 1 :]) for d in range(len(shape))]
    starting = [d for d in range(len(shape)) if prod(shape[d:]) == after and shape[d] > 1]
    holding = [d for d, end in enumerate(ends) if end <= after]
    place = (starting or holding)[0]
    return spread(layer.reshape(-1)[:1].repeat(shape[place]), place, shape)


@rule("unsqueeze")
def unsqueeze(op: Operation, facts: Facts) -> Outcome:
    """Nothing varies along the new dimension, whatever stride a view would give it."""
    del facts
    shape = tuple(op.result.shape)
    added = int(op.args[1]) % len(shape)

    def laid(layer: Layer) -> Layer:
        strides = [*layer.stride()[:added], 0, *layer.stride()[added:]]
        return layer.as_strided(shape, strides, layer.storage_offset())

    return Outcome([(op.result, tuple(map(laid, op.layers_of(op.args[0]))))])


@rule("cat")
def concatenate(op: Operation, facts: Facts) -> Outcome:
    """Joins the layers that lie along the dimension; ties those that do not."""
    tensors: list[torch.Tensor] = [t for t in op.argument("tensors") if t.shape != (0,)]
    dim = op.argument("dim", 0) % op.result.dim()
    crossing: list[Layer] = []
    for tensor in tensors:
        own = [layer for layer in op.layers_of(tensor) if dim in label_dims(layer)]
        crossing.append(own[0] if own else torch.full((1,), NO_LABEL).expand(tensor.shape))
        for layer in own[1:]:
            facts.tie(own[0], layer, "same-position", op.node)
    layers = _parallel_layers(op, tensors, dim, facts)
    if any(bool((layer != NO_LABEL).any()) for layer in crossing):
        layers = (*layers, _joined(crossing, dim, tuple(op.result.shape)))
    return Outcome([(op.result, layers)])


def _joined(layers: Sequence[Layer], dim: int, shape: tuple[int, ...]) -> Layer:
    """A channel joined with itself fills the dimension with one label, and lies along it all the same."""
    if all(set(label_dims(layer)) <= {dim} for layer in layers):
        vectors = [vector_along(layer, dim) for layer in layers]
        return spread(torch.cat(vectors), dim, shape)
    return normalise(torch.cat(list(layers), dim), copied=True)


@rule("repeat")
def repeat(op: Operation, facts: Facts) -> Outcome:
    """Lays copies one behind the other; a single channel then fills its dimension."""
    shape = tuple(op.result.shape)
    added = len(shape) - op.args[0].dim()
    layers: list[Layer] = []
    for layer in op.layers_of(op.args[0]):
        (dim, *scattered) = label_dims(layer)
        if scattered:
            layers += _moved_outputs(op, layer)
        else:
            vector = vector_along(layer, dim)
            layers.append(spread(vector.repeat(op.args[1][dim + added]), dim + added, shape))
    return Outcome([(op.result, _told_apart(layers, facts, op.node))])


def _parallel_layers(op: Operation, tensors: list[torch.Tensor], dim: int, facts: Facts) -> Layers:
    """Layers that do not vary along the joined dimension: one of each, tied to its likes."""
    shape, found = tuple(op.result.shape), dict[tuple[int, ...], Layer]()
    for tensor in tensors:
        for layer in op.layers_of(tensor):
            dims = label_dims(layer)
            if dim not in dims and dims:
                whole = layer.narrow(dim, 0, 1).expand(shape)
                facts.tie(found.setdefault(dims, whole), whole, "same-position", op.node)
    for tensor in tensors:
        covered = {label_dims(layer) for layer in op.layers_of(tensor)}
        alone = [layer for dims, layer in found.items() if dims not in covered]
        facts.restrict(alone, "frozen", "meets-constant", "joined with a value that has no channels", op.node)
    return tuple(found.values())


@rule("stack")
def stack(op: Operation, facts: Facts) -> Outcome:
    """Ties the stacked tensors' labels position by position."""
    tensors: list[torch.Tensor] = op.argument("tensors")
    dim = op.argument("dim", 0) % op.result.dim()
    layers = op.layers_of(tensors[0])
    for tensor in tensors[1:]:
        others = op.layers_of(tensor)
        if [label_dims(layer) for layer in layers] != [label_dims(layer) for layer in others]:
            facts.restrict(
                (*layers, *others), "frozen", "meets-constant", "stacked with another layout", op.node
            )
            continue
        for mine, other in zip(layers, others, strict=True):
            facts.tie(mine, other, "same-position", op.node)
    return Outcome([(op.result, tuple(layer.unsqueeze(dim).expand(op.result.shape) for layer in layers))])


@rule("constant_pad_nd")
def pad(op: Operation, facts: Facts) -> Outcome:
    """Padding keeps the labels of dimensions that it does not pad; padded channels get labels of their own.

    A constant may stand beside any channel that it meets, and be doubled or removed with it.
    """
    source, amounts = op.args[0], list(op.args[1])
    padded = {source.dim() - 1 - i // 2 for i, amount in enumerate(amounts) if amount}
    kept: list[Layer] = []
    for layer in op.layers_of(source):
        dims = label_dims(layer)
        if padded & set(dims):
            if len(dims) == 1 and min(amounts) >= 0:
                kept.append(_padded(op, layer, dims[0], amounts))
            else:
                reason = "channels are padded along one of several dimensions, or cut off"
                facts.restrict((layer,), "frozen", "channel-pad", reason, op.node)
            continue
        first = layer[tuple(slice(0, 1) if dim in padded else slice(None) for dim in range(layer.dim()))]
        kept.append(first.expand(op.result.shape))
    return Outcome([(op.result, tuple(kept))])


def _padded(op: Operation, layer: Layer, dim: int, amounts: Sequence[int]) -> Layer:
    from_end = 2 * (layer.dim() - 1 - dim)
    before, after = amounts[from_end : from_end + 2]
    vector = vector_along(layer, dim)
    whole = torch.cat([op.axes.extend(op.node, before), vector, op.axes.extend(op.node, after)])
    return spread(whole, dim, tuple(op.result.shape))


@rule("expand")
def expand(op: Operation, facts: Facts) -> Outcome:
    """A value that is repeated along a dimension may stand beside any channel that it meets there.

    So every repeated dimension but the batch gets labels of its own.
    """
    shape, own = tuple(op.result.shape), tuple(op.args[0].shape)
    layers = unify([(own, op.layers_of(op.args[0]))], shape, facts, op.node)
    labelled = {dim for layer in layers for dim in label_dims(layer)}
    lead = len(shape) - len(own)
    repeated = [d for d in range(1, len(shape)) if shape[d] > 1 and (d < lead or own[d - lead] == 1)]
    fresh = [spread(op.axes.extend(op.node, shape[d]), d, shape) for d in repeated if d not in labelled]
    return Outcome([(op.result, (*layers, *fresh))])


@rule("index_select")
def index_select(op: Operation, facts: Facts) -> Outcome:
    """Channels that a literal index picks, in its order."""
    return _picked(op, op.argument("dim"), op.argument("index"), facts)


@rule("index")
def index(op: Operation, facts: Facts) -> Outcome:
    """The subscript ``x[:, index]``."""
    indices: Sequence[torch.Tensor | None] = op.argument("indices")
    given = [dim for dim, picked in enumerate(indices) if picked is not None]
    picked = indices[given[0]]
    if len(given) > 1 or picked is None or picked.dtype == torch.bool:
        layers, reason = op.layers_of(op.args[0]), "picked by several indices, or by a mask"
        facts.restrict(layers, "frozen", "computed-index", reason, op.node)
        return Outcome([(op.result, ())])
    return _picked(op, given[0], picked, facts)


def _picked(op: Operation, dim: int, picked: torch.Tensor, facts: Facts) -> Outcome:
    source: torch.Tensor = op.args[0]
    dim, places, shape = dim % source.dim(), op.literal_of(picked), tuple(op.result.shape)
    places = None if places is None or places.is_meta else places
    added = op.result.dim() - source.dim() + 1
    kept: list[Layer] = []
    for layer in op.layers_of(source):
        strides = [*layer.stride()[:dim], *[0] * added, *layer.stride()[dim + 1 :]]
        if dim not in label_dims(layer):
            kept.append(layer.as_strided(shape, strides, layer.storage_offset()))
        elif places is None or places.dim() != 1:
            reason = "picked by an index that the program computes"
            facts.restrict((layer,), "frozen", "computed-index", reason, op.node)
        elif label_dims(layer) == (dim,):
            kept.append(spread(vector_along(layer, dim)[places.long().cpu()], dim, shape))
        else:
            kept.append(normalise(layer.index_select(dim, places.long().cpu()), copied=True))
    return Outcome([(op.result, tuple(kept))])
