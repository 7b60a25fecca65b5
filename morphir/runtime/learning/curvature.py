"""Curvature: the second-order term of a morphism's estimated loss change (section 3.2, equation 1).

Every term is a quadratic form per sample s, so its gradient needs no rule of its own::

    delta_L = 1/S sum_s [ q_s + c_s q_s^2 + d q~_s^2 ]

with ``q = u . g``, g the gradient of the sample's loss, and ``q~ = u . g~``, where ``E[g~ g~^T]`` is the
Fisher of the model's own softmax (:mod:`morphir.runtime.learning.fisher`).

A finite change turns ReLUs over in the layers above, of which no second derivative of the unchanged network
knows. The shrunk Fisher's term is the Fisher's by what this leaves of it, ``d = 1/2 / (1 + n / 50)`` with n
layers above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from morphir.errors import MorphirError

_SMALLEST_LOSS = 1e-8
_SAMPLE_LOSS_FLOOR = 0.1
_BENT_BY_A_LAYER = 0.02
"""What a layer above takes of the Fisher's term at finite changes: measured on VGG-19 (docs/fidelity.md)."""


@dataclass(frozen=True)
class BatchLosses:
    """The losses of one batch.

    Attributes:
        mean: Mean loss, a scalar.
        samples: Loss of each sample, ``[S]``; None where the loss function returns the mean alone.
    """

    mean: torch.Tensor
    samples: torch.Tensor | None

    @cached_property
    def positive_mean(self) -> torch.Tensor:
        """The mean, kept away from 0, where the paper's term has no value."""
        return self.mean.clamp_min(_SMALLEST_LOSS)

    @cached_property
    def paper_factor(self) -> torch.Tensor:
        """1 / (4 L), the factor of q^2 in the paper's term."""
        return 0.25 / self.positive_mean

    @cached_property
    def slopes(self) -> dict[Curvature, Slopes]:
        """The slopes of every term that was asked for."""
        return {}


@dataclass(frozen=True)
class Slopes:
    """The derivatives of a mean estimate: ``first + second q`` by q, ``sampled q~`` by q~.

    Attributes:
        first: 1 / S, a scalar.
        second: 2 c / S, a scalar or ``[S, 1]``; None where the term has no q^2.
        sampled: 2 d / S, a scalar or one for each group; None where the term has no q~^2.
    """

    first: torch.Tensor
    second: torch.Tensor | None
    sampled: torch.Tensor | None

    def of(self, samples: slice) -> Slopes:
        """Returns the slopes of some samples."""
        if self.second is None or not self.second.dim():
            return self
        return Slopes(self.first, self.second[samples], self.sampled)

    def by_q(self, q: torch.Tensor) -> torch.Tensor:
        """Returns the derivative by q, ``[S, groups]`` or a scalar."""
        return self.first if self.second is None else self.first + self.second * q

    def by_sampled(self, sampled_q: torch.Tensor | None) -> torch.Tensor | None:
        """Returns the derivative by q~, ``[S, groups]``; None where there is none."""
        return None if self.sampled is None or sampled_q is None else self.sampled * sampled_q


Coefficient = Callable[[BatchLosses], torch.Tensor | float]


@dataclass(frozen=True)
class Curvature:
    """One choice of the second-order term.

    Attributes:
        own: c, the factor of q^2: a number, a scalar or ``[S, 1]``; None where the term has no q^2.
        sampled: d, the factor of q~^2, a number or one for each group; None where the term has no q~^2.
        per_sample: Whether ``own`` needs the loss of each sample.
        shrinks: Whether ``sampled`` falls with the layers above.
        error: By how much of itself the term is off in a usual space: what a measured factor is weighed
            against.
    """

    own: Coefficient | None
    sampled: torch.Tensor | float | None = None
    per_sample: bool = False
    shrinks: bool = False
    error: float = 1.0

    def below(self, layers: torch.Tensor | int) -> Curvature:
        """Returns the term for groups with so many layers above: one number, or one for each group."""
        if not self.shrinks or self.sampled is None:
            return self
        return replace(self, sampled=self.sampled / (1.0 + _BENT_BY_A_LAYER * layers), shrinks=False)

    @property
    def bends(self) -> bool:
        """Whether there is a second-order term at all."""
        return self.own is not None or self.sampled is not None

    def second_order(
        self, q: torch.Tensor, sampled_q: torch.Tensor | None, losses: BatchLosses
    ) -> torch.Tensor:
        """Returns what the term adds to each sample's q, ``[S, groups]``."""
        if self.sampled is None:
            return torch.zeros_like(q) if self.own is None else self.own(losses) * q.square()
        assert sampled_q is not None
        own = 0.0 if self.own is None else self.own(losses) * q.square()
        return self.sampled * sampled_q.square() + own

    def slopes(self, losses: BatchLosses, samples: int) -> Slopes:
        """Returns the derivatives of the mean estimate of S samples; made once for each batch's losses."""
        found = losses.slopes.get(self)
        if found is None:
            like = losses.positive_mean

            def slope(factor: torch.Tensor | float | None) -> torch.Tensor | None:
                if factor is None:
                    return None
                return factor * (2.0 / samples) * torch.ones_like(like)

            own = None if self.own is None else self.own(losses)
            found = losses.slopes[self] = Slopes(
                like.new_full((), 1.0 / samples), slope(own), slope(self.sampled)
            )
        return found


def _batch(losses: BatchLosses) -> torch.Tensor:
    return losses.paper_factor


def _third_of_batch(losses: BatchLosses) -> torch.Tensor:
    return losses.paper_factor / 3


def _sample(losses: BatchLosses) -> torch.Tensor:
    assert losses.samples is not None
    floor = _SAMPLE_LOSS_FLOOR * losses.positive_mean
    return 0.25 / losses.samples.maximum(floor).unsqueeze(1)


def _one_half(losses: BatchLosses) -> float:
    del losses
    return 0.5


CURVATURES: dict[str, Curvature] = {
    "none": Curvature(None),
    "batch": Curvature(_batch),
    "fisher": Curvature(None, sampled=0.5, error=0.3),
    "shrunk-fisher": Curvature(None, sampled=0.5, shrinks=True, error=0.2),
    # A third of the paper's term, two thirds of the sampled Fisher's.
    "mixed": Curvature(_third_of_batch, sampled=1 / 3, error=0.5),
    "empirical-fisher": Curvature(_one_half),
    "sample": Curvature(_sample, per_sample=True),
}


AUTO = "auto"
"""The name that stands for a sampled curvature where the Fisher is known, else for the paper's."""

NAMES = (AUTO, *CURVATURES)
"""What a curvature may be named by."""

BENT = tuple(name for name, term in CURVATURES.items() if term.bends)
"""The curvatures that have a second-order term."""


def resolved(name: str, preferred: str, *, fisher_is_known: bool) -> Curvature:
    """Returns a curvature by name.

    Args:
        name: A curvature, or :data:`AUTO`.
        preferred: What :data:`AUTO` is where the Fisher is known; ``"batch"`` serves every loss.
        fisher_is_known: Whether the model is a classifier, and its loss bends.
    """
    if name != AUTO:
        return curvature(name)
    return CURVATURES[preferred if fisher_is_known else "batch"]


def check_name(name: str) -> str:
    """Returns a name that is a curvature's, or :data:`AUTO`.

    Raises:
        MorphirError: if it is neither; the hint lists them.
    """
    if name not in NAMES:
        raise MorphirError(f"there is no curvature {name!r}", hint=f"the curvatures are: {', '.join(NAMES)}")
    return name


def curvature(name: str) -> Curvature:
    """Returns a curvature by name.

    Raises:
        MorphirError: if there is none of that name; the hint lists them.
    """
    if name not in CURVATURES:
        raise MorphirError(
            f"there is no curvature {name!r}", hint=f"the curvatures are: {', '.join(CURVATURES)}"
        )
    return CURVATURES[name]
