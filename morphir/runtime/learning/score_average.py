"""The moving average of every morphism's estimate, term by term, and the first loss that was not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from morphir.runtime.learning.curvature import BatchLosses, Curvature
from morphir.runtime.learning.learner_state import State, tensor_of
from morphir.runtime.learning.programs import SpaceProgram
from morphir.runtime.learning.projection import Projection


class ScoreAverage:
    """The average over batches, corrected for its start at 0 as Adam's moments are.

    Args:
        spaces: The spaces; each has a column for every prune, then one for every split where it has any.
        dtype: What the average is held in.
        device: Where.

    Attributes:
        steps: How many batches were added.
    """

    def __init__(self, spaces: Sequence[SpaceProgram], dtype: torch.dtype, device: torch.device) -> None:
        above = [space.layers_above for space in spaces for _ in range(space.morphisms)]
        self.steps = 0
        self._layers_above = torch.tensor(above, dtype=dtype, device=device)
        self._first_order = torch.zeros(len(above), dtype=dtype, device=device)
        self._second_order = torch.zeros_like(self._first_order)
        self._weight = 0.0
        self._bad_step = torch.zeros((), dtype=torch.int64, device=device)

    def add(
        self, projections: Sequence[Projection], losses: BatchLosses, curvature: Curvature, ema: float
    ) -> None:
        """Moves the averages towards one batch's estimates; nothing is read from the device.

        Args:
            projections: The columns' projections in order.
            losses: The batch's losses.
            curvature: What to estimate with.
            ema: The weight of this batch.
        """
        self.steps += 1
        finite = torch.isfinite(losses.mean)
        self._bad_step.masked_fill_(~finite & (self._bad_step == 0), self.steps)
        self._weight += ema * (1.0 - self._weight)
        if projections:
            q = torch.cat([projection.q for projection in projections], dim=1)
            sampled = [p.sampled for p in projections if p.sampled is not None]
            tilde = torch.cat(sampled, dim=1) if sampled else None
            term = curvature.below(self._layers_above).second_order(q, tilde, losses)
            self._first_order.lerp_(q.mean(0).to(self._first_order.dtype), ema)
            self._second_order.lerp_(term.mean(0).to(self._first_order.dtype), ema)

    def values(self, factors: torch.Tensor) -> list[float]:
        """Returns the averages, column by column, after at least one batch; waits for the device.

        Args:
            factors: What to multiply the second-order terms by, one for each column.
        """
        total = torch.addcmul(self._first_order, factors.to(self._first_order), self._second_order)
        return cast("list[float]", cast("Any", total / self._weight).tolist())

    def first_bad_step(self) -> int:
        """Returns the number of the first batch whose loss was not finite, or 0; waits for the device."""
        return int(self._bad_step)

    def state_dict(self) -> dict[str, torch.Tensor | float]:
        """Returns all of it under flat names."""
        tensors = {name: tensor.clone() for name, tensor in self._tensors().items()}
        return {"steps": self.steps, "weight": self._weight, **tensors}

    def shapes(self) -> Mapping[str, torch.Size]:
        """Returns the shapes of the tensors of :meth:`state_dict`."""
        return {name: tensor.shape for name, tensor in self._tensors().items()}

    def load_state_dict(self, state: State) -> None:
        """Continues from a state whose names and shapes fit."""
        self.steps, self._weight = int(state["steps"]), float(state["weight"])
        for name, tensor in self._tensors().items():
            tensor.copy_(tensor_of(state, name))

    def _tensors(self) -> Mapping[str, torch.Tensor]:
        return {
            "first_order": self._first_order,
            "second_order": self._second_order,
            "bad_step": self._bad_step,
        }
