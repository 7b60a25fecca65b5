"""Some positions along dimensions of a tensor: a view where they are evenly spaced, else a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch


@dataclass(frozen=True)
class Selection:
    """Some positions along one dimension.

    Attributes:
        dim: The dimension.
        positions: The positions.
        index: The positions as a tensor; None where they are evenly spaced.
    """

    dim: int
    positions: tuple[int, ...]
    index: torch.Tensor | None

    @staticmethod
    def of(dim: int, positions: Sequence[int], extent: int, device: torch.device) -> Selection | None:
        """Selects positions; None where these are all there are.

        Args:
            dim: The dimension.
            positions: At least one position, ascending.
            extent: How many positions there are.
            device: Where the tensors to select from are.
        """
        if len(positions) == extent:
            return None
        steps = {after - before for before, after in pairwise(positions)}
        index = torch.tensor(positions, device=device) if len(steps) > 1 else None
        return Selection(dim, tuple(positions), index)

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the selected positions of a tensor."""
        if self.index is not None:
            return tensor.index_select(self.dim, self.index)
        first, last = self.positions[0], self.positions[-1]
        if last - first == len(self.positions) - 1:
            return tensor.narrow(self.dim, first, len(self.positions))
        step = self.positions[1] - first
        return tensor[(slice(None),) * self.dim + (slice(first, last + 1, step),)]


def take(selections: Sequence[Selection], tensor: torch.Tensor) -> torch.Tensor:
    """Returns what every selection leaves of a tensor."""
    for selection in selections:
        tensor = selection.take(tensor)
    return tensor
