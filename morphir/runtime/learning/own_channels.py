"""Which positions of which tensor a space's region has to compute: a region is a channelwise program.

A concatenation holds the channels of many spaces, and each space's region needs its own alone. What is left
of the program then is what would be left of it had all other spaces' channels been pruned, so the analysis
has already said where the channels lie and which literals count them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from morphir.ir.channels import ChannelSpace, Value, ValueLayout
from morphir.runtime.learning.selection import Selection


class ChannelMap:
    """Where the groups of all spaces lie, for quick look-ups: every group has a number of its own.

    Args:
        spaces: All spaces of a graph.
        device: Where its tensors are.
    """

    def __init__(self, spaces: Mapping[str, ChannelSpace], device: torch.device) -> None:
        self.spaces = spaces
        self.device = device
        ends = np.cumsum([space.width for space in spaces.values()]).tolist()
        self.first = dict(zip(spaces, [0, *ends], strict=False))
        self.total = sum(space.width for space in spaces.values())
        # Values are kept beside what is known of them: an id is only unique while its object lives.
        self._numbers: dict[tuple[int, int], tuple[Value, NDArray[np.int64]]] = {}

    def numbers(self, value: Value, dim: int) -> NDArray[np.int64]:
        """Returns each position's group; one more than there are for none."""
        key = (id(value), dim)
        if key not in self._numbers:
            found = np.full(value.shape[dim], self.total)
            for layout in value.layouts:
                if layout.dim == dim:
                    found[layout.groups.at] = layout.groups.held + self.first[layout.space]
            self._numbers[key] = (value, found)
        return self._numbers[key][1]

    def own(self, space: str, values: Iterable[Value]) -> OwnChannels:
        """Leaves out every space whose channels lie beside the space's own, as far as they may be pruned.

        Args:
            space: The space that the region is of.
            values: All values in the region.
        """
        beside, across = _neighbours(space, values)
        # What lies beside in one value and across in another has no one set of positions to leave out.
        left_out = [] if beside & across else [name for name in self.spaces if name in beside]
        return OwnChannels.of(self, left_out)


@dataclass(frozen=True, eq=False)
class OwnChannels:
    """A region's own channels.

    Attributes:
        channel_map: Where the channels lie.
        copies: Space to, for each of its groups, 0 where the region leaves it out, else 1.
        kept: The same by the groups' numbers.
    """

    channel_map: ChannelMap
    copies: Mapping[str, Sequence[int]]
    kept: NDArray[np.bool_]

    @staticmethod
    def of(channel_map: ChannelMap, left_out: Collection[str]) -> OwnChannels:
        """Leaves out the groups of some spaces, but not those that must not be pruned."""
        kept = np.ones(channel_map.total + 1, dtype=np.bool_)
        copies: dict[str, list[int]] = {}
        for name in left_out:
            counts = [int(verdict.kind == "frozen") for verdict in channel_map.spaces[name].verdicts]
            kept[channel_map.first[name] : channel_map.first[name] + len(counts)] = counts
            copies[name] = counts
        return OwnChannels(channel_map, copies, kept)

    def positions(self, value: Value, dim: int) -> list[int]:
        """Returns the positions that are left along one dimension of a value."""
        return np.flatnonzero(self.kept[self.channel_map.numbers(value, dim)]).tolist()

    def selection(self, value: Value, dim: int) -> Selection | None:
        """Returns what is left along one dimension of a value; None where all is."""
        return Selection.of(dim, self.positions(value, dim), value.shape[dim], self.channel_map.device)

    def selections(self, value: Value) -> tuple[Selection, ...]:
        """Returns what is left of a value, dimension by dimension."""
        found = [self.selection(value, dim) for dim in _labelled(value)]
        return tuple(selection for selection in found if selection is not None)

    def shape(self, value: Value) -> tuple[int, ...]:
        """Returns the shape of what is left of a value."""
        dims = _labelled(value)
        return tuple(
            len(self.positions(value, dim)) if dim in dims else extent
            for dim, extent in enumerate(value.shape)
        )

    def is_empty(self, value: Value) -> bool:
        """Whether nothing is left of a value."""
        return prod(value.shape) > 0 and not all(self.shape(value))


def parameter_values(spaces: Iterable[ChannelSpace], state: Mapping[str, torch.Tensor]) -> dict[str, Value]:
    """Returns every parameter that holds channels as a value, by ``state_dict`` key."""
    layouts: dict[str, list[ValueLayout]] = {}
    for space in spaces:
        for binding in space.bindings:
            layout = ValueLayout(space.name, binding.axis, binding.groups)
            layouts.setdefault(binding.parameter, []).append(layout)
    return {key: Value(tuple(state[key].shape), state[key].dtype, tuple(own)) for key, own in layouts.items()}


def _labelled(value: Value) -> set[int]:
    return {layout.dim for layout in value.layouts}


def _neighbours(space: str, values: Iterable[Value]) -> tuple[set[str], set[str]]:
    """Returns the spaces that lie along the same dimension as a space's channels, and along another."""
    beside: set[str] = set()
    across: set[str] = set()
    for value in values:
        for dim in {layout.dim for layout in value.layouts if layout.space == space}:
            others = [layout for layout in value.layouts if layout.space != space]
            beside.update(layout.space for layout in others if layout.dim == dim)
            across.update(layout.space for layout in others if layout.dim != dim)
    return beside, across
