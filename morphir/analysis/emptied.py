"""Which operators a rewrite would leave without channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from morphir.ir.channels import ChannelLayer, ValueLayout, as_array
from morphir.ir.index_map import Copies


def emptied(layer: ChannelLayer, copies: Copies) -> Iterator[tuple[str, set[tuple[str, int]]]]:
    """Yields every node that a rewrite would leave with an empty dimension, and the groups along that.

    Args:
        layer: The channel layer before the rewrite.
        copies: Space name to the number of copies of each of its groups.
    """
    for name, values in layer.values.items():
        for value in values:
            for dim in range(len(value.shape)):
                along = [layout for layout in value.layouts if layout.dim == dim]
                if along and not any(_survives(layout, copies) for layout in along):
                    groups = {
                        (layout.space, group) for layout in along for group in layout.groups if group >= 0
                    }
                    if sum(value.copies_along(dim, copies)) == 0:
                        yield name, groups


def _survives(layout: ValueLayout, copies: Copies) -> bool:
    counts = copies.get(layout.space)
    if counts is None:
        return True
    groups = as_array(layout.groups)
    return bool(np.asarray(counts)[groups[groups >= 0]].any())
