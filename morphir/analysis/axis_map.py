"""From index maps of spaces to gather maps of parameter axes.

The map of an axis is found by comparing the axis' groups before and after: the k-th position of a new group
comes from the k-th position of the old group that it is a copy of. Where positions lie is thus never assumed:
the labelled run on the new shapes has said so (a flattened ``C*H*W``, an ``H*W*C``, a row for each
convolution group, a concatenation).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from morphir.ir.channels import AxisBinding, ChannelLayer, as_array
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


Integers = NDArray[np.int64]
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
        return tensor.index_select(self.axis, torch.tensor(self.sources, device=tensor.device))

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
    changed = {m.space: m for m in maps}
    identities = {
        name: IndexMap.identity(name, space.width)
        for name, space in before.spaces.items()
        if name not in changed
    }
    old, new = _bindings(before), _bindings(after)
    for (parameter, axis), bindings in old.items():
        if any(binding_space in changed for binding_space, _ in bindings):
            numbering = _Numbering.of([(changed.get(n) or identities[n], b.role) for n, b in bindings])
            yield _axis_map(parameter, axis, bindings, new.get((parameter, axis), []), numbering)


_Bound = Sequence[tuple[str, AxisBinding]]


def _bindings(layer: ChannelLayer) -> dict[tuple[str, int], list[tuple[str, AxisBinding]]]:
    found: dict[tuple[str, int], list[tuple[str, AxisBinding]]] = {}
    for space in layer.spaces.values():
        for binding in space.bindings:
            found.setdefault((binding.parameter, binding.axis), []).append((space.name, binding))
    return found


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
    def of(maps: Sequence[tuple[IndexMap, str]]) -> _Numbering:
        """Numbers the groups of several spaces; each map comes with the axis' role in its space."""
        old: dict[str, int] = {}
        new: dict[str, int] = {}
        columns: list[tuple[Sequence[float], ...]] = [((0,), (1.0,), (0,), (1.0,))]
        old_total = new_total = 1
        for index_map, role in maps:
            old[index_map.space], new[index_map.space] = old_total, new_total
            columns.append((np.add(index_map.sources, old_total).tolist(), *_factors(role, index_map)))
            old_total += index_map.old_width
            new_total += index_map.new_width
        origins, scales, signs, gradients = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        return _Numbering(old, new, origins.astype(np.int64), scales, signs.astype(np.float64), gradients)

    def name(self, number: int) -> str:
        """Returns a new group as text."""
        space = max((name for name in self.new if self.new[name] <= number), key=self.new.__getitem__)
        return f"{space}[{number - self.new[space]}]"


def _factors(role: str, index_map: IndexMap) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    """Returns the factors on values, the signs of theta, and the factors on gradients of the new groups.

    A consumer's column is scaled and keeps its gradient; all that lies before a scaled column has its
    gradient scaled.
    """
    ones, zeros = (1.0,) * index_map.new_width, (0,) * index_map.new_width
    if role == "consumer":
        return index_map.scales, zeros, ones
    return ones, index_map.signs if role == "producer" else zeros, index_map.scales


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
    numbers = np.zeros(len(bindings[0][1].groups), np.int64)
    for space, binding in bindings:
        groups = as_array(binding.groups)
        np.copyto(numbers, groups + first[space], where=groups >= 0)
    return numbers


def _ranks(numbers: Integers, counts: Integers) -> Integers:
    """Returns, for every position, how many positions before it have the same number."""
    ranks = np.empty_like(numbers)
    ordered = np.argsort(numbers, kind="stable")
    ranks[ordered] = np.arange(len(numbers)) - (np.cumsum(counts) - counts)[numbers[ordered]]
    return ranks
