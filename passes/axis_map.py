"""From index maps of spaces to gather maps of parameter axes.

The map of an axis is found by comparing the axis' groups before and after: the k-th position of a new group
comes from the k-th position of the old group that it is a copy of. Where positions lie is thus never assumed:
the labelled run on the new shapes has said so (a flattened ``C*H*W``, an ``H*W*C``, a row for each
convolution group, a concatenation).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from morphir.errors import VerificationError
from morphir.ir.channels import AxisBinding, ChannelLayer
from morphir.ir.index_map import IndexMap

_Key = tuple[str, int]
_UNBOUND: _Key = ("", -1)


@dataclass(frozen=True)
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
    sources: tuple[int, ...]
    scales: tuple[float, ...]
    signs: tuple[int, ...]
    gradients: tuple[float, ...]

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns ``tensor`` gathered along the axis."""
        return tensor.index_select(self.axis, torch.tensor(self.sources, device=tensor.device))

    def along(self, factors: Sequence[float], like: torch.Tensor) -> torch.Tensor:
        """Returns ``factors`` laid along the axis, broadcastable against ``like``."""
        shape = [1] * like.dim()
        shape[self.axis] = len(factors)
        return torch.tensor(factors, dtype=like.dtype, device=like.device).reshape(shape)


def axis_maps(before: ChannelLayer, after: ChannelLayer, maps: Sequence[IndexMap]) -> Iterator[AxisMap]:
    """Yields a map for every axis that the index maps change.

    Raises:
        VerificationError: if the program did not put the channels where the index maps say.
    """
    changed = {m.space: m for m in maps}
    old, new = _bindings(before), _bindings(after)
    for (parameter, axis), bindings in old.items():
        if any(binding_space in changed for binding_space, _ in bindings):
            yield _axis_map(parameter, axis, bindings, new.get((parameter, axis), []), changed)


_Bindings = dict[tuple[str, int], list[tuple[str, AxisBinding]]]


def _bindings(layer: ChannelLayer) -> _Bindings:
    found: _Bindings = {}
    for space in layer.spaces.values():
        for binding in space.bindings:
            found.setdefault((binding.parameter, binding.axis), []).append((space.name, binding))
    return found


def _axis_map(
    parameter: str,
    axis: int,
    old: Sequence[tuple[str, AxisBinding]],
    new: Sequence[tuple[str, AxisBinding]],
    changed: Mapping[str, IndexMap],
) -> AxisMap:
    positions: dict[_Key, list[int]] = {}
    for position, key in enumerate(_keys(old)):
        positions.setdefault(key, []).append(position)
    role = {space: binding.role for space, binding in old}
    taken: dict[_Key, int] = {}
    rows: list[tuple[int, float, int, float]] = []
    for key in _keys(new):
        space, group = key
        index_map = changed.get(space)
        origin = key if index_map is None else (space, index_map.sources[group])
        rank = taken.get(key, 0)
        taken[key] = rank + 1
        if rank >= len(positions.get(origin, ())):
            raise VerificationError(f"axis {axis} of {parameter} does not hold {space}[{group}] as predicted")
        scale, sign, gradient = (
            (1.0, 0, 1.0) if index_map is None else _factors(role[space], index_map, group)
        )
        rows.append((positions[origin][rank], scale, sign, gradient))
    _check_complete(parameter, axis, positions, taken, changed)
    sources, scales, signs, gradients = zip(*rows, strict=True)
    return AxisMap(parameter, axis, sources, scales, signs, gradients)


def _keys(bindings: Sequence[tuple[str, AxisBinding]]) -> list[_Key]:
    if not bindings:
        return []
    keys: list[_Key] = [_UNBOUND] * len(bindings[0][1].groups)
    for space, binding in bindings:
        for position, group in enumerate(binding.groups):
            if group >= 0:
                keys[position] = (space, group)
    return keys


def _factors(role: str, index_map: IndexMap, group: int) -> tuple[float, int, float]:
    """Returns the factor on values, the sign of theta, and the factor on gradients of one new group.

    A consumer's column is scaled and keeps its gradient; all that lies before a scaled column has its
    gradient scaled.
    """
    scale = index_map.scales[group]
    if role == "consumer":
        return scale, 0, 1.0
    return 1.0, index_map.signs[group] if role == "producer" else 0, scale


def _check_complete(
    parameter: str,
    axis: int,
    positions: Mapping[_Key, list[int]],
    taken: Mapping[_Key, int],
    changed: Mapping[str, IndexMap],
) -> None:
    """Every copy of a group has as many positions as the group had, and nothing unchanged is lost."""
    copies_of = {name: index_map.copies() for name, index_map in changed.items()}
    for key, old in positions.items():
        space, group = key
        copies = [(space, new) for new in copies_of[space][group]] if space in copies_of else [key]
        if any(taken.get(copy, 0) != len(old) for copy in copies):
            raise VerificationError(
                f"axis {axis} of {parameter} does not hold every copy of {space}[{group}]"
            )
