"""Which positions a literal picks: cuts, slices, index lists and rolls, before and after a rewrite.

A rewritten literal takes a group's copies to lie where the group lay. A view that interleaves channels may
lay them elsewhere: after a shuffle ``[a1 b1 a2 b2]`` a split of ``b`` gives ``[a1 b1 a2 b2]`` with ``b``
doubled as ``b1 b1' b2 b2'`` or as ``b1 b2 b1' b2'``. What the groups tell is whether each is picked as often
as before; which of its positions are picked, and in which order, only this comparison does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from morphir.analysis.arguments import source_name
from morphir.analysis.literals import LITERALS
from morphir.ir.channels import ChannelLayer, Value
from morphir.ir.groups import Integers
from morphir.ir.index_map import IndexMap

_Group = tuple[str, int]
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
            results = layer.values.get(node.name, ())
            for literal_rule in LITERALS:
                if literal_rule.matches(node):
                    for piece, dim, positions in literal_rule.picks(node, values[0], results):
                        found[node.name, piece, dim] = Pick(source_name(node), positions)
    return found


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
            for position, group in zip(layout.groups.at.tolist(), layout.groups.held.tolist(), strict=True):
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
