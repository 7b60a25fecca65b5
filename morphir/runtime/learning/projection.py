"""A space's splits and prunes projected on the loss: q and q~ of every group, and the way back to delta.

With a+- = sigma(y +- delta), u = (a+ + a-)/2 - a and g the gradient at the edge alone (DESIGN section 2)::

    q[s, c] = sum over edges and positions of u g        (prune: u = -a)

so the score needs no automatic differentiation; the VJP of the region is in
:mod:`morphir.runtime.learning.perturbation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from morphir.runtime.learning.curvature import Slopes
from morphir.runtime.learning.group_index import GroupIndex
from morphir.runtime.learning.model_pass import Pass
from morphir.runtime.learning.perturbation import PERTURBATIONS, Perturbed
from morphir.runtime.learning.programs import EdgeProgram, SpaceProgram
from morphir.runtime.learning.region import Region


@dataclass(frozen=True)
class Projection:
    """q and q~ of every group of a space, ``[S, groups]`` each."""

    q: torch.Tensor
    sampled: torch.Tensor | None

    @staticmethod
    def joined(parts: Sequence[Projection]) -> Projection:
        """Joins the projections of a batch's slices."""
        if len(parts) == 1:
            return parts[0]
        sampled = [part.sampled for part in parts if part.sampled is not None]
        return Projection(torch.cat([part.q for part in parts]), torch.cat(sampled) if sampled else None)


@dataclass(frozen=True)
class EdgeValue:
    """One edge on some samples: a, g, g~, on the space's own channels."""

    groups: GroupIndex
    a: torch.Tensor
    g: torch.Tensor
    sampled: torch.Tensor | None

    def output_gradient(self, slope: torch.Tensor, sampled_slope: torch.Tensor | None) -> torch.Tensor:
        """Returns slope g + slope~ g~."""
        total = self.g * (self.groups.spread(slope, self.g) if slope.dim() else slope.to(self.g.dtype))
        if sampled_slope is not None and self.sampled is not None:
            total = torch.addcmul(total, self.groups.spread(sampled_slope, self.sampled), self.sampled)
        return total


@dataclass(frozen=True)
class RegionValues:
    """What a space's region and its edges hold on some samples.

    Attributes:
        ys: The producers' outputs.
        deltas: Their changes.
        externals: What the region reads besides.
        edges: The edges' values; None for one that the loss does not depend on.
        samples: How many samples there are.
        sampled: Whether there is a gradient for the sampled Fisher.
    """

    ys: Sequence[torch.Tensor]
    deltas: Sequence[torch.Tensor]
    externals: Sequence[Any]
    edges: Sequence[EdgeValue | None]
    samples: int
    sampled: bool

    def part(self, samples: slice) -> RegionValues:
        """Returns the same on some of the samples; where the region is stackable."""

        def cut(tensor: torch.Tensor) -> torch.Tensor:
            each = tensor.shape[0] // self.samples
            return tensor[samples.start * each : samples.stop * each]

        def cut_edge(edge: EdgeValue) -> EdgeValue:
            sampled = None if edge.sampled is None else cut(edge.sampled)
            return EdgeValue(edge.groups, cut(edge.a), cut(edge.g), sampled)

        return RegionValues(
            list(map(cut, self.ys)),
            list(map(cut, self.deltas)),
            self.externals,
            [None if edge is None else cut_edge(edge) for edge in self.edges],
            samples.stop - samples.start,
            self.sampled,
        )


@dataclass(frozen=True)
class Projected:
    """The projections of a space, and the way back.

    Attributes:
        prunes: q and q~ of the prunes.
        splits: q and q~ of the splits.
        gradients: The derivatives of the splits' summed estimates by the deltas.
    """

    prunes: Projection
    splits: Projection
    gradients: Sequence[torch.Tensor]


class Project(Protocol):
    """How a region is projected.

    Attributes:
        cpu_slice_bytes: The most of y that is best given to it at once on a CPU.
    """

    cpu_slice_bytes: int

    def __call__(self, values: RegionValues, slopes: Slopes) -> Projected:
        """Returns the projections, and the way back.

        Args:
            values: What the region and its edges hold.
            slopes: The derivatives of the samples' estimates by q and q~.
        """
        ...


def edge_values(space: SpaceProgram, run: Pass) -> list[EdgeValue | None]:
    """Returns each edge of a space; None for one that the loss does not depend on."""
    return [_edge_value(edge, run) for edge in space.edges]


def _edge_value(edge: EdgeProgram, run: Pass) -> EdgeValue | None:
    g = _total(edge, run.gradients)
    if g is None:
        return None
    sampled = None if run.sampled is None else _total(edge, run.sampled)
    return EdgeValue(edge.groups, edge.read(run.captured[edge.taps[0]]), g, sampled)


def _total(edge: EdgeProgram, gradients: Mapping[int, torch.Tensor]) -> torch.Tensor | None:
    known = [edge.read(gradients[slot]) for slot in edge.taps if slot in gradients]
    return sum(known[1:], start=known[0]) if known else None


def project(
    changes: Sequence[torch.Tensor | None],
    factor: float,
    edges: Sequence[EdgeValue | None],
    samples: int,
    *,
    sampled: bool,
) -> Projection:
    """Returns q and q~ of ``factor`` times the changes, one for each edge."""
    pairs = [(u, edge) for u, edge in zip(changes, edges, strict=True) if u is not None and edge is not None]
    q = [edge.groups.sum(u * edge.g, samples) for u, edge in pairs]
    total = sum(q[1:], start=q[0]) * factor
    if not sampled:
        return Projection(total, None)
    tilde = [edge.groups.sum(u * edge.sampled, samples) for u, edge in pairs if edge.sampled is not None]
    return Projection(total, sum(tilde[1:], start=tilde[0]) * factor if tilde else torch.zeros_like(total))


def estimate_prunes(edges: Sequence[EdgeValue | None], samples: int, *, sampled: bool) -> Projection:
    """Returns the projection of removing each group, u = -a."""
    changes = [None if edge is None else edge.a for edge in edges]
    return project(changes, -1.0, edges, samples, sampled=sampled)


class PlainProjection:
    """How a region is projected by PyTorch's operators, one after another.

    Args:
        region: The region.
    """

    cpu_slice_bytes = 1 << 20

    def __init__(self, region: Region) -> None:
        self.region = region

    def perturbed(self, values: RegionValues) -> Perturbed:
        """Returns what the changes of y do at the edges, and the way back."""
        bases = [None if edge is None else edge.a for edge in values.edges]
        perturb = PERTURBATIONS[self.region.kind]
        return perturb(self.region, values.ys, values.deltas, values.externals, bases)

    def __call__(self, values: RegionValues, slopes: Slopes) -> Projected:
        """Returns the projections, and the way back."""
        edges, samples, sampled = values.edges, values.samples, values.sampled
        perturbed = self.perturbed(values)
        splits = project(perturbed.doubled, 0.5, edges, samples, sampled=sampled)
        slope, sampled_slope = 0.5 * slopes.by_q(splits.q), slopes.by_sampled(splits.sampled)
        half = None if sampled_slope is None else 0.5 * sampled_slope
        gradients = perturbed.vjp(
            [None if edge is None else edge.output_gradient(slope, half) for edge in edges]
        )
        return Projected(estimate_prunes(edges, samples, sampled=sampled), splits, gradients)
