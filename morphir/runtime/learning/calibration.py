"""How far the second-order terms are off at finite changes, measured space by space.

Samples do not depend on each other, so that one forward pass can have another morphism really applied to
each, drawn at random: it yields as many true changes of the loss as there are samples. The second-order terms
of a space's splits, and those of its prunes, are multiplied by the factor with which the sums of estimated
and true changes agree::

    f = sum_s (t_s - q_s) / sum_s d_s        t: the true change, d: the second-order term

Few samples tell little of f: it is averaged with 1, the term's own factor, by the inverse squares of f's
standard error and of the term's usual one (``Curvature.error``). The standard error is that of the residuals
at the term's own factor: at f itself a few samples that make up most of the sums would have none. Where these
are as few as that, ``(sum d)^2 / sum d^2`` below 30, the term's own factor stays.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch

from morphir.errors import MorphirError
from morphir.ir.channels import ChannelSpace
from morphir.ir.graph import Graph
from morphir.runtime.learning.batches import BatchError
from morphir.runtime.learning.curvature import BatchLosses, Curvature
from morphir.runtime.learning.learner_state import State, tensor_of
from morphir.runtime.learning.precision import autocast_dtype, without_autocast
from morphir.runtime.learning.programs import SpaceProgram
from morphir.runtime.learning.projection import Projection
from morphir.runtime.learning.theta import Theta

_FEWEST = 30
"""Samples of equal terms that a standard error takes."""


class CalibrationError(MorphirError):
    """The factors of a learner's second-order terms cannot be measured."""


@contextmanager
def exactly(kind: str) -> Generator[None]:
    """Computes without autocast: what is compared are small differences.

    Raises:
        CalibrationError: if a batch fails so that may do with it.
    """
    ambient = autocast_dtype(kind) is not None
    with without_autocast(kind):
        try:
            yield
        except BatchError as error:
            if not ambient:
                raise
            raise CalibrationError(
                f"a calibration runs without autocast, and {error.message}",
                hint="leave calibrations out, or let the model run in single precision too",
            ) from error


@dataclass(frozen=True)
class Drawn:
    """A morphism for each sample.

    Attributes:
        columns: The column of each, ``[S]``.
        first: Space name to the column of its first prune.
    """

    columns: torch.Tensor
    first: Mapping[str, int]

    def of(self, space: SpaceProgram) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns where each sample's own morphism is among a space's prunes, and its splits if it has any.

        Both are booleans ``[S, groups]``.
        """
        prunes = torch.arange(space.width, device=self.columns.device) + self.first[space.name]
        own = self.columns.unsqueeze(1)
        return own == prunes, None if space.split is None else own == prunes + space.width


class Calibration:
    """Draws morphisms, and gathers what their true changes say of the second-order terms.

    Columns are those of the scores' average: of each space its prunes, then its splits where it has any. A
    row is the prunes or the splits of a space.

    Args:
        programs: The spaces, lowered.
        graph: The graph, for its verdicts.

    Attributes:
        is_empty: Whether there is nothing to draw.
    """

    def __init__(self, programs: Sequence[SpaceProgram], graph: Graph) -> None:
        device = graph.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        ends = list(accumulate(program.morphisms for program in programs))
        self._programs = programs
        self._first = {
            program.name: end - program.morphisms for program, end in zip(programs, ends, strict=True)
        }
        widths = [program.width for program in programs for _ in range(program.morphisms // program.width)]
        rows = [row for row, width in enumerate(widths) for _ in range(width)]
        above = [program.layers_above for program in programs for _ in range(program.morphisms)]
        drawable = [own for program in programs for own in _drawable(program, graph.space(program.name))]
        self._rows = torch.tensor(rows, dtype=torch.int64, device=device)
        self._layers_above = torch.tensor(above, dtype=dtype, device=device)
        # What the term's own factor, 1, is weighed by.
        self._error = torch.ones((), dtype=dtype, device=device)
        # How many samples, and the sums of x = t - q, d, x^2, x d and d^2.
        self._sums = torch.zeros(len(widths), 6, dtype=dtype, device=device)
        self._drawable = torch.tensor(drawable, dtype=dtype, device=device)
        self.is_empty = not any(drawable)

    def draw(
        self, samples: int, thetas: Mapping[str, Mapping[str, Theta]], generator: torch.Generator | None
    ) -> Drawn:
        """Draws a row for each sample, all being as likely, and one of its morphisms that changes something.

        Args:
            samples: S.
            thetas: Space to producer parameter to theta; a split whose theta is 0 changes nothing.
            generator: Source of the draw.
        """
        weights = self._drawable * self._moving(thetas)
        of_row = torch.zeros_like(self._sums[:, 0]).index_add_(0, self._rows, weights).clamp_min(1)
        chances = (weights / of_row[self._rows]).cumsum(0)
        drawn = torch.rand(samples, dtype=chances.dtype, device=chances.device, generator=generator)
        # Strictly below the last chance, whatever the product is rounded to.
        at = torch.minimum(drawn * chances[-1], chances[-1].nextafter(torch.zeros_like(chances[-1])))
        return Drawn(torch.searchsorted(chances, at, right=True).clamp_max(len(chances) - 1), self._first)

    def _moving(self, thetas: Mapping[str, Mapping[str, Theta]]) -> torch.Tensor:
        """Returns for every column whether its morphism changes anything."""
        found: list[torch.Tensor] = []
        for program in self._programs:
            found.append(torch.ones(program.width, dtype=torch.bool, device=self._rows.device))
            if program.split is not None:
                found.append(torch.stack([theta.moved() for theta in thetas[program.name].values()]).any(0))
        return torch.cat(found)

    def add(
        self,
        drawn: Drawn,
        changes: torch.Tensor,
        projections: Sequence[Projection],
        losses: BatchLosses,
        curvature: Curvature,
    ) -> None:
        """Adds a batch; nothing is read from the device.

        Args:
            drawn: Each sample's morphism.
            changes: Each sample's true change of the loss, ``[S]``.
            projections: q and q~ of each sample's morphism, ``[S]``, in one of them, and 0 in the others.
            losses: The batch's losses.
            curvature: The second-order term.
        """
        zero = torch.zeros_like(changes)
        q = sum((own.q for own in projections), start=zero)
        tilde = sum((own.sampled for own in projections if own.sampled is not None), start=zero)
        above = self._layers_above[drawn.columns].unsqueeze(1)
        d = curvature.below(above).second_order(q.unsqueeze(1), tilde.unsqueeze(1), losses).squeeze(1)
        x, d = (value.to(self._sums.dtype) for value in (changes - q, d))
        terms = torch.stack([torch.ones_like(x), x, d, x * x, x * d, d * d], dim=1)
        self._sums.index_add_(0, self._rows[drawn.columns], terms)
        self._error.fill_(curvature.error)

    def factors(self) -> torch.Tensor:
        """Returns what to multiply each column's second-order term by; waits for the device.

        Raises:
            MorphirError: if a loss was not finite.
        """
        if not bool(self._sums.isfinite().all()):
            raise MorphirError(
                "the loss of a calibration was not finite", hint="check the data that it was made on"
            )
        _, x, d, xx, xd, dd = self._sums.unbind(1)
        smallest = torch.finfo(d.dtype).tiny
        square = d.square().clamp_min(smallest)
        measured, variance = x / d.clamp_min(smallest), (xx - 2 * xd + dd) / square
        own = self._error.square()
        averaged = ((measured * own + variance) / (own + variance)).clamp_min(0)
        told = square / dd.clamp_min(smallest) >= _FEWEST
        return torch.where(told, averaged, torch.ones_like(averaged))[self._rows]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns what was gathered."""
        return {name: tensor.clone() for name, tensor in self._tensors().items()}

    def shapes(self) -> Mapping[str, torch.Size]:
        """Returns the shapes of the tensors of :meth:`state_dict`."""
        return {name: tensor.shape for name, tensor in self._tensors().items()}

    def load_state_dict(self, state: State) -> None:
        """Continues from a state whose names and shapes fit."""
        for name, tensor in self._tensors().items():
            tensor.copy_(tensor_of(state, name))

    def _tensors(self) -> Mapping[str, torch.Tensor]:
        return {"calibration": self._sums, "calibration_error": self._error}


def _drawable(program: SpaceProgram, space: ChannelSpace) -> list[bool]:
    """Returns for every prune, and for every split, whether it can be applied to one sample.

    Where a norm or a softmax mixes channels, a prune does more than to silence its own.
    """
    prunes = [verdict.kind == "exact" for verdict in space.verdicts]
    if program.split is None:
        return prunes
    return prunes + [own and program.split.is_located for own in prunes]
