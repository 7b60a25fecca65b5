"""One space's estimate on one batch: q of every split and prune, and theta's gradient (DESIGN section 2).

With delta = op(x, theta), a+- = sigma(y +- delta), u = (a+ + a-)/2 - a and g the gradient at the edge alone::

    q[s, c] = sum over edges and positions of u g        (prune: u = -a)
    d delta_L / d delta+- = +- VJP_sigma(y +- delta)[ 1/2 (slope g + slope~ g~) ] / S

so the score needs no automatic differentiation; the VJP of the region is in
:mod:`morphir.runtime.learning.perturbation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from morphir.runtime.learning.curvature import Curvature
from morphir.runtime.learning.folded_norm import along_channels
from morphir.runtime.learning.group_index import GroupIndex
from morphir.runtime.learning.lowering import EdgeProgram, ProducerProgram, SpaceProgram, SplitProgram
from morphir.runtime.learning.model_pass import Pass
from morphir.runtime.learning.perturbation import PERTURBATIONS
from morphir.runtime.learning.selection import take


@dataclass(frozen=True)
class Projection:
    """q and q~ of every group of a space, ``[S, groups]`` each."""

    q: torch.Tensor
    sampled: torch.Tensor | None


@dataclass(frozen=True)
class SplitEstimate:
    """The splits of one space on one batch.

    Attributes:
        projection: q and q~.
        gradients: Producer parameter to theta's gradient.
    """

    projection: Projection
    gradients: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class EdgeValue:
    """One edge on one batch: a, g, g~, on the space's own channels."""

    groups: GroupIndex
    a: torch.Tensor
    g: torch.Tensor
    sampled: torch.Tensor | None

    def output_gradient(
        self, slope: torch.Tensor | float, sampled_slope: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns slope g + slope~ g~."""
        total = self.g * (self.groups.spread(slope, self.g) if isinstance(slope, torch.Tensor) else slope)
        if sampled_slope is not None and self.sampled is not None:
            total = torch.addcmul(total, self.groups.spread(sampled_slope, self.sampled), self.sampled)
        return total


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
    changes: Sequence[torch.Tensor | None], factor: float, edges: Sequence[EdgeValue | None], run: Pass
) -> Projection:
    """Returns q and q~ of ``factor`` times the changes, one for each edge."""
    pairs = [(u, edge) for u, edge in zip(changes, edges, strict=True) if u is not None and edge is not None]
    q = [edge.groups.sum(u * edge.g, run.samples) for u, edge in pairs]
    total = sum(q[1:], start=q[0]) * factor
    if run.sampled is None:
        return Projection(total, None)
    tilde = [edge.groups.sum(u * edge.sampled, run.samples) for u, edge in pairs if edge.sampled is not None]
    return Projection(total, sum(tilde[1:], start=tilde[0]) * factor if tilde else torch.zeros_like(total))


def estimate_prunes(edges: Sequence[EdgeValue | None], run: Pass) -> Projection:
    """Returns q and q~ of removing each group, u = -a."""
    return project([None if edge is None else edge.a for edge in edges], -1.0, edges, run)


def estimate_splits(
    split: SplitProgram,
    thetas: Mapping[str, torch.Tensor],
    edges: Sequence[EdgeValue | None],
    run: Pass,
    curvature: Curvature,
) -> SplitEstimate:
    """Returns the projections of all splits of a space, and theta's gradient of their summed estimates.

    Args:
        split: The space's program.
        thetas: Producer parameter to theta; each requires grad.
        edges: The edges' values.
        run: The batch.
        curvature: The term that theta is learned with.
    """
    given = RegionInputs.of(split, thetas, run)
    bases = [None if edge is None else edge.a for edge in edges]
    perturb = PERTURBATIONS[split.region.kind]
    perturbed = perturb(split.region, given.ys, given.detached(), given.externals, bases)
    projection = project(perturbed.doubled, 0.5, edges, run)
    slope = curvature.slope(projection.q, run.losses) * (0.5 / run.samples)
    sampled_slope = None
    if curvature.sampled and projection.sampled is not None:
        sampled_slope = curvature.sampled_slope(projection.sampled) * (0.5 / run.samples)
    back = perturbed.vjp(
        [None if edge is None else edge.output_gradient(slope, sampled_slope) for edge in edges]
    )
    return SplitEstimate(projection, given.theta_gradients(thetas, back))


@dataclass(frozen=True)
class RegionInputs:
    """What a space's region reads on one batch.

    Attributes:
        ys: The producers' outputs.
        deltas: Their changes, which depend on theta.
        externals: What it reads besides.
    """

    ys: Sequence[torch.Tensor]
    deltas: Sequence[torch.Tensor]
    externals: Sequence[Any]

    @staticmethod
    def of(split: SplitProgram, thetas: Mapping[str, torch.Tensor], run: Pass) -> RegionInputs:
        """Reads them from the pass, and computes delta."""
        ys = [take(producer.part, run.captured[producer.y]) for producer in split.producers]
        with torch.enable_grad():
            deltas = [_delta(producer, thetas[producer.parameter], run) for producer in split.producers]
        externals = [take(external.part, run.captured[external.slot]) for external in split.externals]
        return RegionInputs(ys, deltas, externals)

    def detached(self) -> list[torch.Tensor]:
        """Returns delta as numbers."""
        return [delta.detach() for delta in self.deltas]

    def theta_gradients(
        self, thetas: Mapping[str, torch.Tensor], gradients: Sequence[torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """Turns the gradients by delta into those by theta."""
        names = list(thetas)
        found = torch.autograd.grad(self.deltas, [thetas[name] for name in names], gradients)
        return dict(zip(names, found, strict=True))


def _delta(producer: ProducerProgram, theta: torch.Tensor, run: Pass) -> torch.Tensor:
    """Returns op(theta, x), in y's precision and, where batch norm is folded in, in y's units."""
    dtype, norm = run.captured[producer.y].dtype, producer.folded
    values = [_in_precision(run.captured[slot], dtype) for slot in producer.sources]
    if norm is None:
        delta = producer.op.apply(theta.to(dtype), *values)
    elif norm.scales_kernel:
        delta = producer.op.apply((theta * _own_rows(producer, norm.scale)).to(dtype), *values)
    else:
        delta = producer.op.apply(theta.to(dtype), *values)
        delta = delta * along_channels(_own_rows(producer, norm.scale), delta)
    return take(producer.part, delta) if producer.rows is None else delta


def _own_rows(producer: ProducerProgram, tensor: torch.Tensor) -> torch.Tensor:
    return tensor if producer.rows is None else producer.rows.take(tensor)


def _in_precision(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
