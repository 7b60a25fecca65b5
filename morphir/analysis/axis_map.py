"""From index maps of spaces to gather maps of parameter axes.

The map of an axis is found by comparing the axis' groups before and after: the k-th position of a new group
comes from the k-th position of the old group that it is a copy of. Where positions lie is thus never assumed:
the labelled run on the new shapes has said so (a flattened ``C*H*W``, an ``H*W*C``, a row for each
convolution group, a concatenation).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from morphir.ir.channels import AxisBinding, ChannelLayer, Role
from morphir.ir.groups import Integers
from morphir.ir.index_map import IndexMap


class MismatchError(Exception):
    """The program put channels elsewhere than the index maps say.

    Args:
        parameter: ``state_dict`` key of the tensor at which this was seen.
        reason: What is wrong.
    """

    def __init__(self, parameter: str, reason: str) -> None:
        super().__init__(reason)
        self.parameter = parameter


Factors = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AxisMap:
    """How one axis of one parameter is rewritten.

    Attributes:
        parameter: ``state_dict`` key.
        axis: Which axis.
        sources: For every new position, the old position that it is gathered from.
        scales: For every new position, the factor on the values.
        signs: For every new position, the sign of theta.
        gradients: For every new position, the factor that the chain rule puts on the gradient there.
    """

    parameter: str
    axis: int
    sources: Integers
    scales: Factors
    signs: Factors
    gradients: Factors

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns ``tensor`` gathered along the axis."""
        return tensor.index_select(self.axis, torch.as_tensor(self.sources, device=tensor.device))

    def along(self, factors: Factors, like: torch.Tensor) -> torch.Tensor:
        """Returns ``factors`` laid along the axis, broadcastable against ``like``."""
        shape = [1] * like.dim()
        shape[self.axis] = len(factors)
        return torch.tensor(factors, dtype=like.dtype, device=like.device).reshape(shape)


def axis_maps(before: ChannelLayer, after: ChannelLayer, maps: Sequence[IndexMap]) -> Iterator[AxisMap]:
    """Yields a map for every axis that the index maps change.

    Raises:
        MismatchError: if the program did not put the channels where the index maps say.
    """
    changed = {m.space for m in maps}
    spaces = {name: _Space.of(IndexMap.identity(name, space.width)) for name, space in before.spaces.items()}
    spaces |= {m.space: _Space.of(m) for m in maps}
    old, new = _bindings(before), _bindings(after)
    # Many axes hold the same channels, as all vectors of a batch norm and the columns behind it.
    known: dict[object, AxisMap] = {}
    for (parameter, axis), bindings in old.items():
        if any(space in changed for space, _ in bindings):
            found = new.get((parameter, axis), [])
            key = _identity(bindings), _identity(found)
            if key not in known:
                known[key] = _axis_map(parameter, axis, bindings, found, _Numbering.of(bindings, spaces))
            yield replace(known[key], parameter=parameter, axis=axis)


_Bound = Sequence[tuple[str, AxisBinding]]


def _bindings(layer: ChannelLayer) -> dict[tuple[str, int], list[tuple[str, AxisBinding]]]:
    found: dict[tuple[str, int], list[tuple[str, AxisBinding]]] = {}
    for space in layer.spaces.values():
        for binding in space.bindings:
            found.setdefault((binding.parameter, binding.axis), []).append((space.name, binding))
    return found


def _identity(bindings: _Bound) -> tuple[tuple[str, Role, int], ...]:
    return tuple((space, binding.role, id(binding.groups)) for space, binding in bindings)


@dataclass(frozen=True, eq=False)
class _Space:
    """What becomes of one space, as arrays over its new groups.

    Attributes:
        old_width: Number of groups before.
        sources: The old group that each is a copy of.
        scales: The factor on consumer axes.
        signs: The sign of theta on producer rows.
    """

    old_width: int
    sources: Integers
    scales: Factors
    signs: Factors

    @staticmethod
    def of(index_map: IndexMap) -> _Space:
        """Reads an index map."""
        scales, signs = (np.array(factors, np.float64) for factors in (index_map.scales, index_map.signs))
        return _Space(index_map.old_width, np.array(index_map.sources, np.int64), scales, signs)

    def factors(self, role: Role) -> tuple[Factors, Factors, Factors]:
        """Returns the factors on values, the signs of theta, and the factors on gradients.

        A consumer's column is scaled and keeps its gradient; all that lies before a scaled column has its
        gradient scaled.
        """
        ones, zeros = np.ones(len(self.sources)), np.zeros(len(self.sources))
        if role == "consumer":
            return self.scales, zeros, ones
        return ones, self.signs if role == "producer" else zeros, self.scales


@dataclass(frozen=True, eq=False)
class _Numbering:
    """The groups along one axis, numbered across its spaces: 0 is no group, then space after space.

    Attributes:
        old: Space to the number of its first group before.
        new: Space to the number of its first group after.
        origins: New number to the old number that it is a copy of.
        scales: New number to the factor on values.
        signs: New number to the sign of theta.
        gradients: New number to the factor on gradients.
    """

    old: Mapping[str, int]
    new: Mapping[str, int]
    origins: Integers
    scales: Factors
    signs: Factors
    gradients: Factors

    @staticmethod
    def of(bindings: _Bound, spaces: Mapping[str, _Space]) -> _Numbering:
        """Numbers the groups of the spaces along an axis."""
        old: dict[str, int] = {}
        new: dict[str, int] = {}
        columns = [_NO_GROUP]
        old_total = new_total = 1
        for name, binding in bindings:
            space = spaces[name]
            old[name], new[name] = old_total, new_total
            columns.append((space.sources + old_total, *space.factors(binding.role)))
            old_total += space.old_width
            new_total += len(space.sources)
        return _Numbering(old, new, *(np.concatenate(parts) for parts in zip(*columns, strict=True)))

    def name(self, number: int) -> str:
        """Returns a new group as text."""
        space = max((name for name in self.new if self.new[name] <= number), key=self.new.__getitem__)
        return f"{space}[{number - self.new[space]}]"


_NO_GROUP = (np.zeros(1, np.int64), np.ones(1), np.zeros(1), np.ones(1))


def _axis_map(parameter: str, axis: int, old: _Bound, new: _Bound, numbering: _Numbering) -> AxisMap:
    unknown = [space for space, _ in new if space not in numbering.new]
    if unknown:
        raise MismatchError(
            parameter, f"axis {axis} of {parameter} holds {', '.join(unknown)}, which was not predicted"
        )
    old_numbers = _numbers(old, numbering.old)
    old_counts = np.bincount(old_numbers, minlength=int(numbering.origins.max()) + 1)
    # Where every group that the axis held is pruned, what is left of it belongs to no space.
    new_numbers = _numbers(new, numbering.new) if new else np.zeros(old_counts[0], np.int64)
    new_counts = np.bincount(new_numbers, minlength=len(numbering.origins))
    wrong = np.flatnonzero(new_counts[1:] != old_counts[numbering.origins[1:]]) + 1
    if wrong.size:
        lost = numbering.name(int(wrong[0]))
        raise MismatchError(parameter, f"axis {axis} of {parameter} does not hold every copy of {lost}")
    if new_counts[0] != old_counts[0]:
        raise MismatchError(parameter, f"axis {axis} of {parameter} does not hold what belongs to no space")
    starts = np.cumsum(old_counts) - old_counts
    sources = np.argsort(old_numbers, kind="stable")[
        starts[numbering.origins[new_numbers]] + _ranks(new_numbers, new_counts)
    ]
    factors = (numbering.scales, numbering.signs, numbering.gradients)
    return AxisMap(parameter, axis, sources, *(values[new_numbers] for values in factors))


def _numbers(bindings: _Bound, first: Mapping[str, int]) -> Integers:
    """Returns the number of the group at every position of an axis."""
    numbers = np.zeros(bindings[0][1].groups.extent, np.int64)
    for space, binding in bindings:
        numbers[binding.groups.at] = binding.groups.held + first[space]
    return numbers


def _ranks(numbers: Integers, counts: Integers) -> Integers:
    """Returns, for every position, how many positions before it have the same number."""
    ranks = np.empty_like(numbers)
    ordered = np.argsort(numbers, kind="stable")
    ranks[ordered] = np.arange(len(numbers)) - (np.cumsum(counts) - counts)[numbers[ordered]]
    return ranks
