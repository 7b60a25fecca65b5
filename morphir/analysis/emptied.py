"""Which operators a rewrite would leave too few channels: none, or one where that is taken for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from morphir.ir.channels import ChannelLayer, ValueLayout
from morphir.ir.groups import Groups
from morphir.ir.index_map import Copies


@dataclass(frozen=True)
class Emptied:
    """An operator that a rewrite leaves too few channels.

    Attributes:
        node: Name of the graph node.
        groups: All that it has now: space name and group.
        left: How many channels would be left.
    """

    node: str
    groups: frozenset[tuple[str, int]]
    left: int


def emptied(layer: ChannelLayer, copies: Copies) -> Iterator[Emptied]:
    """Yields every operator that a rewrite would leave too few channels.

    Args:
        layer: The channel layer before the rewrite.
        copies: Space name to the number of copies of each of its groups.
    """
    for name, values in layer.values.items():
        for value in values:
            for dim in range(len(value.shape)):
                along = [layout for layout in value.layouts if layout.dim == dim]
                if not along or any(_survives(layout, copies) for layout in along):
                    continue
                if sum(value.copies_along(dim, copies)) == 0:
                    yield Emptied(name, frozenset(_pairs({x.space: x.groups for x in along})), 0)
    for several in layer.several:
        left = several.left(copies)
        if left < 2:
            yield Emptied(several.node, frozenset(_pairs(several.groups)), left)


def spared(layer: ChannelLayer, copies: Copies) -> set[tuple[str, int]]:
    """Returns a pruned group to keep for each operator that a rewrite would leave too few channels."""
    return {
        next(pair for pair in sorted(found.groups) if not _kept(pair, copies))
        for found in emptied(layer, copies)
    }


def _kept(pair: tuple[str, int], copies: Copies) -> bool:
    space, group = pair
    return space not in copies or copies[space][group] > 0


def _pairs(groups: Mapping[str, Groups]) -> Iterator[tuple[str, int]]:
    return ((space, group) for space, held in groups.items() for group in held.held.tolist())


def _survives(layout: ValueLayout, copies: Copies) -> bool:
    counts = copies.get(layout.space)
    if counts is None:
        return True
    return bool(np.asarray(counts)[layout.groups.held].any())
