"""Literals that cut channels out: chunks, splits, slices, single channels, rolls, paddings, index lists.

All positions that a program writes down move with the channels that they separate: a bound ``p`` becomes the
number of channels that a rewrite leaves of the first ``p``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn

from morphir.analysis.arguments import argument, set_argument, source_name
from morphir.analysis.labels import Facts, Labelled, LabelledValue, label_dims
from morphir.analysis.rules.operation import channel_vector
from morphir.ir.channels import ChannelLayer, Value
from morphir.ir.groups import Integers
from morphir.ir.index_map import Copies

Taken = tuple[int, int, Integers]
"""Which of the tensors that a node yields, a dimension of its input, and the positions taken there."""


def tie_chunks(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """Equal chunks stay equal: the same inner index of every chunk goes together."""
    pieces = labelled[node.name]
    if not isinstance(argument(node, 1, "chunks", argument(node, 1, "indices_or_sections")), int):
        return
    dim = cast(int, argument(node, 2, "dim", 0)) % len(pieces[0].shape)
    vectors = [channel_vector(piece.layers, dim, facts, node.name) for piece in pieces]
    if len({piece.shape[dim] for piece in pieces}) > 1:
        return
    for vector in vectors[1:]:
        if vector is not None and vectors[0] is not None:
            facts.tie(vectors[0], vector, "equal-chunks", node.name)


def rewrite_split(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """A split's size becomes the list of the pieces' new sizes."""
    dim, old, new = _sizes_of_pieces(node, layer, copies)
    if old != new:
        known = ("split_size_or_sections", "split_sizes", "split_size")
        name = next((name for name in known if name in node.kwargs), "split_size")
        if dim != 0 and len(node.args) < 3 and "dim" not in node.kwargs:
            node.update_kwarg("dim", dim)
        set_argument(node, 1, name, new)


def rewrite_chunk(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """Chunks become a split, unless they are equal, as many as are asked for, and stay so."""
    dim, old, new = _sizes_of_pieces(node, layer, copies)
    equal = len({*old}) == len({*new}) == 1 and len(old) == argument(node, 1, "chunks")
    if old != new and not equal:
        node.target = "split" if node.op == "call_method" else torch.split
        node.args, node.kwargs = (node.args[0] if node.args else node.kwargs["input"], new), {"dim": dim}


def rewrite_tensor_split(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """Sections become the bounds between the pieces, unless the pieces are equal and stay so."""
    _, old, new = _sizes_of_pieces(node, layer, copies)
    sections = isinstance(argument(node, 1, "indices_or_sections", node.kwargs.get("sections")), int)
    if old != new and not (sections and len({*old}) + len({*new}) == 2):
        bounds = tuple(accumulate(new[:-1]))
        if "sections" in node.kwargs or "indices" in node.kwargs:
            node.kwargs = {k: v for k, v in node.kwargs.items() if k not in ("sections", "indices")}
            node.kwargs = {**node.kwargs, "indices": bounds}
        else:
            set_argument(node, 1, "indices_or_sections", bounds)


def _sizes_of_pieces(node: fx.Node, layer: ChannelLayer, copies: Copies) -> tuple[int, list[int], list[int]]:
    pieces = layer.values[node.name]
    dim = cast(int, argument(node, 2, "dim", 0)) % len(pieces[0].shape)
    return dim, [piece.shape[dim] for piece in pieces], [piece.extents(copies)[dim] for piece in pieces]


def pieces_taken(node: fx.Node, value: Value, results: Sequence[Value]) -> Iterator[Taken]:
    """What each piece of a cut takes."""
    del value
    dim = argument(node, 2, "dim", 0)
    if isinstance(dim, int):
        start = 0
        for at, piece in enumerate(results):
            yield at, dim % len(piece.shape), np.arange(start, start + piece.shape[dim])
            start += piece.shape[dim]


def constrain_narrow(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """``narrow`` with literal bounds follows; others do not."""
    _require_integers(node, labelled, facts, argument(node, 2, "start"), argument(node, 3, "length"))


def rewrite_narrow(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """Start and length of ``narrow``."""
    weights = _weights(node, layer, copies)
    if weights is None:
        return
    start, length = cast(int, argument(node, 2, "start")), cast(int, argument(node, 3, "length"))
    start %= len(weights)
    set_argument(node, 2, "start", sum(weights[:start]))
    set_argument(node, 3, "length", sum(weights[start : start + length]))


def narrow_taken(node: fx.Node, value: Value, results: Sequence[Value]) -> Iterator[Taken]:
    """What ``narrow`` takes."""
    dim, start = argument(node, 1, "dim"), argument(node, 2, "start")
    if isinstance(dim, int) and isinstance(start, int):
        first = start % max(value.shape[dim], 1)
        yield 0, dim % len(value.shape), np.arange(first, first + results[0].shape[dim])


def constrain_select(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """``select`` of a literal channel follows; that channel is frozen by where it goes."""
    _require_integers(node, labelled, facts, argument(node, 2, "index"))


def rewrite_select(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """The position of the channel that ``select`` takes."""
    weights = _weights(node, layer, copies)
    if weights is not None:
        set_argument(node, 2, "index", moved_position(cast(int, argument(node, 2, "index")), weights))


def constrain_roll(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """A roll by literal shifts along given dimensions follows."""
    shifts = shifts_of(node, labelled)
    for value in labelled.get(source_name(node), ()):
        rolled = None if shifts is None else set(shifts)
        layers = [x for x in value.layers if rolled is None or rolled & set(label_dims(x))]
        if rolled is None or any(not isinstance(shift, int) for shift in (shifts or {}).values()):
            facts.restrict(layers, "frozen", "literal", "rolled by computed shifts, or as if flat", node.name)


def rewrite_roll(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """A shift is the number of channels that come from the end to the start."""
    values = layer.values[source_name(node)]
    shifts = shifts_of(node, layer.values)
    if shifts is None or any(not isinstance(shift, int) for shift in shifts.values()):
        return
    for dim, shift in shifts.items():
        weights = values[0].copies_along(dim, copies)
        shifts[dim] = sum(weights[len(weights) - shift % len(weights) :]) if set(weights) != {1} else shift
    single = isinstance(argument(node, 1, "shifts"), int)
    set_argument(node, 1, "shifts", next(iter(shifts.values())) if single else tuple(shifts.values()))


def shifts_of(node: fx.Node, values: Mapping[str, Sequence[LabelledValue | Value]]) -> dict[int, Any] | None:
    """Returns the shift along each rolled dimension; None for a roll of all elements as if flat."""
    shifts, dims = _listed(argument(node, 1, "shifts")), _listed(argument(node, 2, "dims", ()))
    rank = len(values[source_name(node)][0].shape)
    return {cast(int, dim) % rank: shift for dim, shift in zip(dims, shifts, strict=True)} if dims else None


def _listed(item: object) -> list[object]:
    return list(cast("Sequence[object]", item)) if isinstance(item, (tuple, list)) else [item]


def roll_taken(node: fx.Node, value: Value, results: Sequence[Value]) -> Iterator[Taken]:
    """What a roll takes: all positions, in another order."""
    del results
    for dim, shift in (shifts_of(node, {source_name(node): (value,)}) or {}).items():
        if isinstance(shift, int):
            yield 0, dim, np.roll(np.arange(value.shape[dim]), shift)


def constrain_pad(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """Literal amounts of padded channels follow what these meet; computed ones do not."""
    amounts = _listed(argument(node, 1, "pad"))
    for value in labelled[node.name]:
        rank = len(value.shape)
        known = {
            dim
            for dim in range(rank)
            if all(isinstance(amount, int) for amount in amounts[2 * (rank - 1 - dim) :][:2])
        }
        layers = [layer for layer in value.layers if not known.issuperset(label_dims(layer))]
        facts.restrict(layers, "frozen", "channel-pad", "padded by computed amounts", node.name)


def rewrite_pad(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """How many constants stand before and after the channels."""
    (value,) = layer.values[node.name]
    amounts = list(cast("Sequence[Any]", argument(node, 1, "pad")))
    for dim in range(len(value.shape)):
        at = 2 * (len(value.shape) - 1 - dim)
        weights = value.copies_along(dim, copies)
        if at < len(amounts) and set(weights) != {1}:
            before, after = amounts[at : at + 2]
            amounts[at : at + 2] = sum(weights[:before]), sum(weights[len(weights) - after :])
    set_argument(node, 1, "pad", tuple(amounts))


def constrain_index_select(node: fx.Node, labelled: Labelled, facts: Facts) -> None:
    """An index that is a buffer of this use alone follows."""
    require_own_index(argument(node, 2, "index"), node, labelled, facts, cast(int, argument(node, 1, "dim")))


def rewrite_index_select(node: fx.Node, layer: ChannelLayer, copies: Copies) -> None:
    """The buffer that holds the index."""
    values = layer.values[source_name(node)]
    dim = cast(int, argument(node, 1, "dim")) % len(values[0].shape)
    rewrite_index(argument(node, 2, "index"), values[0].copies_along(dim, copies))


def index_select_taken(node: fx.Node, value: Value, results: Sequence[Value]) -> Iterator[Taken]:
    """What an index takes."""
    del results
    dim, index = argument(node, 1, "dim"), literal_index(argument(node, 2, "index"))
    if isinstance(dim, int) and index is not None:
        yield 0, dim % len(value.shape), np.asarray(index, np.int64) % value.shape[dim]


def require_own_index(index: object, node: fx.Node, labelled: Labelled, facts: Facts, dim: int) -> None:
    """Freezes channels that are picked by an index that nothing can rewrite for this use alone."""
    for value in labelled.get(source_name(node), ()):
        layers = [layer for layer in value.layers if dim % len(value.shape) in label_dims(layer)]
        if isinstance(index, fx.Node) and not _is_own_buffer(index):
            reason = "picked by an index that the program computes, or reads in several places"
            facts.restrict(layers, "frozen", "computed-index", reason, node.name)


def _is_own_buffer(index: fx.Node) -> bool:
    reads = [n for n in index.graph.nodes if n.op == "get_attr" and n.target == index.target]
    return index.op == "get_attr" and len(reads) == 1 and len(index.users) == 1


def rewrite_index(index: object, weights: Sequence[int]) -> object:
    """Returns the index with every position replaced by those that a rewrite makes of it.

    A buffer is replaced in its module; a list comes back as a new one.
    """
    if set(weights) == {1}:
        return index
    starts = [0, *accumulate(weights)]

    def moved(places: Sequence[int]) -> list[int]:
        found = [place % len(weights) for place in places]
        return [starts[place] + copy for place in found for copy in range(weights[place])]

    places = literal_index(index)
    if places is None or not isinstance(index, fx.Node):
        return index if places is None else moved(places)
    owner, name = _owner_of(index)
    old = cast(torch.Tensor, getattr(owner, name))
    setattr(owner, name, torch.tensor(moved(places), dtype=old.dtype, device=old.device))
    return index


def literal_index(index: object) -> list[int] | None:
    """Returns the positions of an index that the program holds as a list or a buffer; None for others.

    A buffer on the meta device holds none; the labelled run freezes what it picks from.
    """
    if isinstance(index, fx.Node):
        if index.op != "get_attr":
            return None
        owner, name = _owner_of(index)
        held: torch.Tensor | None = getattr(owner, name)
        # torch leaves the type of tolist() open.
        return (
            cast("list[int]", held.tolist())  # pyright: ignore[reportUnknownMemberType]
            if isinstance(held, torch.Tensor) and held.dim() == 1 and not held.is_meta
            else None
        )
    if isinstance(index, (list, tuple)) and all(
        isinstance(item, int) for item in _listed(cast(object, index))
    ):
        return list(cast("Sequence[int]", index))
    return None


def _owner_of(index: fx.Node) -> tuple[nn.Module, str]:
    path, _, name = str(index.target).rpartition(".")
    return cast("fx.GraphModule", index.graph.owning_module).get_submodule(path), name


def moved_position(position: int, weights: Sequence[int]) -> int:
    """Returns where a single channel lies after a rewrite; counted from the end where it was."""
    moved = sum(weights[: position % len(weights)])
    return moved if position >= 0 else moved - sum(weights)


def _weights(node: fx.Node, layer: ChannelLayer, copies: Copies) -> list[int] | None:
    """Returns the copies along the dimension that a node cuts; None where nothing changes."""
    (value,) = layer.values[source_name(node)]
    weights = value.copies_along(cast(int, argument(node, 1, "dim")) % len(value.shape), copies)
    return None if set(weights) == {1} else weights


def _require_integers(node: fx.Node, labelled: Labelled, facts: Facts, *numbers: object) -> None:
    if all(isinstance(number, int) for number in numbers):
        return
    dim = argument(node, 1, "dim")
    for value in labelled.get(source_name(node), ()):
        layers = [
            layer
            for layer in value.layers
            if not isinstance(dim, int) or dim % len(value.shape) in label_dims(layer)
        ]
        facts.restrict(layers, "frozen", "computed-slice", "cut out at a computed position", node.name)
