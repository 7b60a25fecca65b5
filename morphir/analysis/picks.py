"""Which positions a literal picks: cuts, slices, index lists and rolls, before and after a rewrite.

A rewritten literal takes a group's copies to lie where the group lay. A view that interleaves channels may
lay them elsewhere: after a shuffle ``[a1 b1 a2 b2]`` a split of ``b`` gives ``[a1 b1 a2 b2]`` with ``b``
doubled as ``b1 b1' b2 b2'`` or as ``b1 b2 b1' b2'``. What the groups tell is whether each is picked as often
as before; which of its positions are picked, and in which order, only this comparison does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx

from morphir.analysis.arguments import argument, source_name
from morphir.analysis.cuts import literal_index, shifts_of
from morphir.analysis.subscripts import subscripts_of
from morphir.ir.channels import ChannelLayer, Value
from morphir.ir.index_map import IndexMap

Integers = NDArray[np.int64]
_Group = tuple[str, int]
_CUTS = frozenset({"chunk", "split", "split_with_sizes", "tensor_split"})


Place = tuple[str, int, int]
"""Node, which of the tensors that it yields, and the dimension of the value that it picks from."""


@dataclass(frozen=True, eq=False)
class Pick:
    """What a node takes along one dimension of its input.

    Attributes:
        source: Name of the node whose value it picks from.
        positions: For every position that comes out, the position that it is taken from.
    """

    source: str
    positions: Integers


def picks(program: fx.Graph, layer: ChannelLayer) -> dict[Place, Pick]:
    """Returns every literal pick of a program; ``layer`` holds the shapes."""
    found: dict[Place, Pick] = {}
    for node in program.nodes:
        values = layer.values.get(source_name(node), ())
        if len(values) == 1:
            for piece, dim, positions in _positions(node, values[0], layer.values.get(node.name, ())):
                found[node.name, piece, dim] = Pick(source_name(node), positions)
    return found


def _positions(node: fx.Node, value: Value, results: Sequence[Value]) -> Iterator[tuple[int, int, Integers]]:
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    rank = len(value.shape)
    if name == "roll":
        for dim, shift in (shifts_of(node, {source_name(node): (value,)}) or {}).items():
            if isinstance(shift, int):
                yield 0, dim, np.roll(np.arange(value.shape[dim]), shift)
    elif name == "index_select":
        dim, index = argument(node, 1, "dim"), literal_index(argument(node, 2, "index"))
        if isinstance(dim, int) and index is not None:
            yield 0, dim % rank, np.asarray(index, np.int64) % value.shape[dim]
    elif name == "narrow":
        dim, start = argument(node, 1, "dim"), argument(node, 2, "start")
        if isinstance(dim, int) and isinstance(start, int) and results:
            first = start % max(value.shape[dim], 1)
            yield 0, dim % rank, np.arange(first, first + results[0].shape[dim])
    elif name in _CUTS:
        dim = argument(node, 2, "dim", 0)
        if isinstance(dim, int):
            ends = np.cumsum([piece.shape[dim] for piece in results])
            for at, (piece, end) in enumerate(zip(results, ends.tolist(), strict=True)):
                yield at, dim % rank, np.arange(end - piece.shape[dim], end)
    elif name == "getitem":
        for subscript in subscripts_of(node, rank):
            positions = _subscripted(subscript.item, value.shape[subscript.dim])
            if positions is not None:
                yield 0, subscript.dim, positions


def _subscripted(item: object, extent: int) -> Integers | None:
    if type(item) is slice:
        bounds = (item.start, item.stop, item.step)
        literal = all(bound is None or isinstance(bound, int) for bound in bounds)
        return np.arange(extent)[item] if literal else None
    if isinstance(item, int):
        return None
    index = literal_index(item)
    return None if index is None else np.asarray(index, np.int64) % extent


def misplaced(
    before: ChannelLayer,
    after: ChannelLayer,
    old: Mapping[Place, Pick],
    new: Mapping[Place, Pick],
    maps: Sequence[IndexMap],
) -> str | None:
    """Returns the name of a node that picks other positions of a group than before; None where none does."""
    sources = {m.space: m.sources for m in maps}
    for place, pick in old.items():
        node, _, dim = place
        (was,), (now,) = before.values[pick.source], after.values[pick.source]
        if {x.space for x in was.layouts if x.dim == dim}.isdisjoint(sources):
            continue
        if place not in new:
            return node
        wanted = _orders(was, dim, pick)
        for (space, group), order in _orders(now, dim, new[place]).items():
            origin = sources[space][group] if space in sources else group
            if wanted.get((space, origin)) != order:
                return node
    return None


def _orders(value: Value, dim: int, pick: Pick) -> dict[_Group, list[int]]:
    """Returns, for every group, which of its positions are picked, in the order in which they come out."""
    owners: list[_Group] = [("", -1)] * value.shape[dim]
    for layout in value.layouts:
        if layout.dim == dim:
            for position, group in enumerate(layout.groups):
                if group >= 0:
                    owners[position] = (layout.space, group)
    ranks = list[int]()
    seen: dict[_Group, int] = {}
    for owner in owners:
        ranks.append(seen.get(owner, 0))
        seen[owner] = ranks[-1] + 1
    found: dict[_Group, list[int]] = {owner: [] for owner in seen if owner[0]}
    for position in map(int, pick.positions):
        if owners[position][0]:
            found[owners[position]].append(ranks[position])
    return found
