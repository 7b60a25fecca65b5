"""A rewrite is an index map: for each space, which old group every new group comes from.

For every parameter axis bound to the space, gather along the map, times a scale on consumer axes, plus or
minus theta on producer rows::

    w_out'[..., j] = scale[j] * w_out[..., source[j]]        (consumer axes)
    w_in'[j]       = w_in[source[j]] + sign[j] * theta[source[j]]   (producer axes)
    beta'[j]       = beta[source[j]]                         (the region's own parameters)

Maps on different axes of one parameter commute. The map is data: it prints, serialises, and replays on a
fresh model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Theta = Mapping[str, torch.Tensor]
Copies = Mapping[str, "Sequence[int] | NDArray[np.int64]"]
"""Space name to how many copies a rewrite makes of each of its groups."""


@dataclass(frozen=True, repr=False)
class IndexMap:
    """The structural change of one space.

    Attributes:
        space: Name of the space.
        old_width: Number of groups before.
        sources: For every new group, the old group that it comes from.
        scales: For every new group, the factor on consumer axes (one half for split children).
        signs: For every new group, the sign of theta on producer rows (+1, -1, or 0 for none).
        thetas: Old group to {producer parameter: theta}; absent groups have theta = 0.
    """

    space: str
    old_width: int
    sources: tuple[int, ...]
    scales: tuple[float, ...]
    signs: tuple[int, ...]
    thetas: Mapping[int, Theta] = field(default_factory=dict[int, Theta], compare=False, repr=False)

    @staticmethod
    def identity(space: str, width: int) -> IndexMap:
        """Returns the map that changes nothing."""
        return IndexMap(space, width, tuple(range(width)), (1.0,) * width, (0,) * width)

    @staticmethod
    def of_copies(space: str, counts: Sequence[int]) -> IndexMap:
        """Returns the map that makes so many copies of each group: 0 of a pruned one, 2 of a split one."""
        copies = [(group, count, copy) for group, count in enumerate(counts) for copy in range(count)]
        return IndexMap(
            space,
            len(counts),
            tuple(group for group, _, _ in copies),
            tuple(1.0 / count for _, count, _ in copies),
            tuple(0 if count == 1 else 1 - 2 * (copy % 2) for _, count, copy in copies),
        )

    @property
    def new_width(self) -> int:
        """Number of groups after."""
        return len(self.sources)

    def copies(self) -> tuple[tuple[int, ...], ...]:
        """Returns, for every old group, the new groups that come from it."""
        found: list[list[int]] = [[] for _ in range(self.old_width)]
        for new, old in enumerate(self.sources):
            found[old].append(new)
        return tuple(map(tuple, found))

    def then(self, later: IndexMap) -> IndexMap:
        """Returns the map that does this and then ``later``; a group has one sign, the last that it got."""
        return IndexMap(
            self.space,
            self.old_width,
            tuple(self.sources[old] for old in later.sources),
            tuple(self.scales[old] * scale for old, scale in zip(later.sources, later.scales, strict=True)),
            tuple(sign or self.signs[old] for old, sign in zip(later.sources, later.signs, strict=True)),
        )

    @property
    def lineage(self) -> tuple[str, ...]:
        """Every new group as text: ``3`` kept, ``3+`` and ``3-`` the halves of a split."""
        marks = {0: "", 1: "+", -1: "-"}
        return tuple(f"{source}{marks[sign]}" for source, sign in zip(self.sources, self.signs, strict=True))

    def __repr__(self) -> str:
        return f"IndexMap({self})"

    def __str__(self) -> str:
        return f"{self.space}: {self.old_width} -> {self.new_width} [{' '.join(self.lineage)}]"

    def to_json(self) -> dict[str, Any]:
        """Returns the map without its thetas, which are tensors and are stored as such."""
        return {
            "space": self.space,
            "old_width": self.old_width,
            "sources": list(self.sources),
            "scales": list(self.scales),
            "signs": list(self.signs),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], thetas: Mapping[int, Theta] | None = None) -> IndexMap:
        """Reads what :meth:`to_json` wrote."""
        return IndexMap(
            data["space"],
            data["old_width"],
            tuple(data["sources"]),
            tuple(data["scales"]),
            tuple(data["signs"]),
            dict(thetas or {}),
        )


@dataclass(frozen=True)
class Rewrite:
    """One applied morphism set: numbered, recorded, replayable.

    Attributes:
        number: Counts from 1 over the graph's life.
        name: The pass that made it.
        morphisms: The morphisms as text (``split features.0[3]``).
        maps: One index map per space that changed.
        delta_parameters: Exact change of the number of parameters.
    """

    number: int
    name: str
    morphisms: tuple[str, ...]
    maps: tuple[IndexMap, ...]
    delta_parameters: int

    def __str__(self) -> str:
        maps = "; ".join(str(index_map) for index_map in self.maps)
        return f"#{self.number} {self.name} ({self.delta_parameters:+d} parameters): {maps}"

    def to_json(self) -> dict[str, Any]:
        """Returns the rewrite as plain data; thetas are left to :meth:`tensors`."""
        return {
            "number": self.number,
            "name": self.name,
            "morphisms": list(self.morphisms),
            "maps": [index_map.to_json() for index_map in self.maps],
            "delta_parameters": self.delta_parameters,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns every theta under ``<number>/<space>/<group>/<parameter>``."""
        return {
            f"{self.number}/{index_map.space}/{group}/{parameter}": theta.detach().contiguous()
            for index_map in self.maps
            for group, thetas in index_map.thetas.items()
            for parameter, theta in thetas.items()
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> Rewrite:
        """Reads what :meth:`to_json` and :meth:`tensors` wrote."""
        return Rewrite(
            data["number"],
            data["name"],
            tuple(data["morphisms"]),
            tuple(_map_from_json(data["number"], item, tensors or {}) for item in data["maps"]),
            data["delta_parameters"],
        )


def _map_from_json(number: int, data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> IndexMap:
    prefix = f"{number}/{data['space']}/"
    thetas: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            group, parameter = key.removeprefix(prefix).split("/", 1)
            thetas.setdefault(int(group), {})[parameter] = tensor
    return IndexMap.from_json(data, thetas)


def composed(maps: Iterable[IndexMap]) -> tuple[IndexMap, ...]:
    """Returns one map per space, for maps that were applied one after the other."""
    found: dict[str, IndexMap] = {}
    for later in maps:
        found[later.space] = found[later.space].then(later) if later.space in found else later
    return tuple(found.values())


def copies_of(maps: Sequence[IndexMap]) -> dict[str, NDArray[np.int64]]:
    """Returns, for each mapped space, how many new groups come from each old one."""
    return {m.space: np.bincount(np.asarray(m.sources, np.int64), minlength=m.old_width) for m in maps}
