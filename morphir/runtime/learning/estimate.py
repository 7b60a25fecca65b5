"""One space's estimate on one batch: q of every split and prune, and theta's gradient (DESIGN section 2).

With delta = op(x, theta), a+- = sigma(y +- delta), u = (a+ + a-)/2 - a and g the gradient at the edge alone::

    q[s, c] = sum over edges and positions of u g        (prune: u = -a)
    d delta_L / d delta+- = +- VJP_sigma(y +- delta)[ 1/2 (slope g + slope~ g~) ] / S

so the score needs no automatic differentiation; the VJP of the region is in
:mod:`morphir.runtime.learning.perturbation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from morphir.runtime.learning.curvature import BatchLosses, Curvature
from morphir.runtime.learning.folded_norm import along_channels
from morphir.runtime.learning.group_index import GroupIndex
from morphir.runtime.learning.lowering import EdgeProgram, ProducerProgram, SpaceProgram, SplitProgram
from morphir.runtime.learning.model_pass import Pass
from morphir.runtime.learning.perturbation import PERTURBATIONS
from morphir.runtime.learning.region import Region
from morphir.runtime.learning.selection import take

_SLICE_BYTES = {"cpu": 1 << 20}
_LARGE_SLICE_BYTES = 1 << 26
"""The most of y that goes through a region at once: on a CPU what its caches hold, elsewhere what keeps the
device busy."""


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
class SplitEstimate:
    """A space that can be split, on one batch.

    Attributes:
        prunes: q and q~ of the prunes.
        splits: q and q~ of the splits.
        gradients: Producer parameter to theta's gradient.
    """

    prunes: Projection
    splits: Projection
    gradients: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class EdgeValue:
    """One edge on some samples: a, g, g~, on the space's own channels."""

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


@dataclass(frozen=True)
class RegionValues:
    """What a space's region and its edges hold on some samples.

    Attributes:
        ys: The producers' outputs.
        deltas: Their changes.
        externals: What the region reads besides.
        edges: The edges' values; None for one that the loss does not depend on.
        samples: How many samples there are.
        sampled: Whether there is a gradient for sampled labels.
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
        pull: Derivatives by the splits' q and q~, ``[S, groups]`` or a number each, to those by delta.
    """

    prunes: Projection
    splits: Projection
    pull: Callable[[torch.Tensor | float, torch.Tensor | None], list[torch.Tensor]]


Project = Callable[[RegionValues], Projected]


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


def plain_projection(region: Region) -> Project:
    """Returns how a region is projected by PyTorch's operators, one after another."""

    def of(values: RegionValues) -> Projected:
        edges, samples, sampled = values.edges, values.samples, values.sampled
        bases = [None if edge is None else edge.a for edge in edges]
        perturbed = PERTURBATIONS[region.kind](region, values.ys, values.deltas, values.externals, bases)

        def pull(slope: torch.Tensor | float, sampled_slope: torch.Tensor | None) -> list[torch.Tensor]:
            half = None if sampled_slope is None else 0.5 * sampled_slope
            return perturbed.vjp(
                [None if edge is None else edge.output_gradient(0.5 * slope, half) for edge in edges]
            )

        return Projected(
            estimate_prunes(edges, samples, sampled=sampled),
            project(perturbed.doubled, 0.5, edges, samples, sampled=sampled),
            pull,
        )

    return of


def estimate_splits(
    split: SplitProgram,
    project: Project,
    thetas: Mapping[str, torch.Tensor],
    edges: Sequence[EdgeValue | None],
    run: Pass,
    curvature: Curvature,
) -> SplitEstimate:
    """Returns the projections of a space, and theta's gradient of the splits' summed estimates.

    Large batches go through the region slice by slice, since its values at y + delta and y - delta are what
    a learning step holds more of than a training step.

    Args:
        split: The space's program.
        project: How its region is projected.
        thetas: Producer parameter to theta; each requires grad.
        edges: The edges' values.
        run: The batch.
        curvature: The term that theta is learned with.
    """
    with torch.enable_grad():
        deltas = [_delta(producer, thetas[producer.parameter], run) for producer in split.producers]
    values = RegionValues(
        [take(producer.part, run.captured[producer.y]) for producer in split.producers],
        [delta.detach() for delta in deltas],
        [take(external.part, run.captured[external.slot]) for external in split.externals],
        edges,
        run.samples,
        run.sampled is not None,
    )
    slices = _slices(split.region, values)
    prunes: list[Projection] = []
    splits: list[Projection] = []
    gradients: Sequence[torch.Tensor] = values.deltas
    for samples in slices:
        part = values if len(slices) == 1 else values.part(samples)
        projected = project(part)
        prunes.append(projected.prunes)
        splits.append(projected.splits)
        back = projected.pull(*_slopes(curvature, projected.splits, run.losses.of(samples), run.samples))
        if len(slices) == 1:
            gradients = back
        else:
            # A slice's delta is needed no more, and makes room for its gradient.
            for delta, gradient in zip(part.deltas, back, strict=True):
                delta.copy_(gradient)
    names = list(thetas)
    found = torch.autograd.grad(deltas, [thetas[name] for name in names], gradients)
    return SplitEstimate(
        Projection.joined(prunes), Projection.joined(splits), dict(zip(names, found, strict=True))
    )


def _slices(region: Region, values: RegionValues) -> list[slice]:
    """Returns the samples that go through a region at once."""
    most = _SLICE_BYTES.get(values.ys[0].device.type, _LARGE_SLICE_BYTES)
    size = max(y.numel() * y.element_size() for y in values.ys)
    count = min(math.ceil(size / most), values.samples) if region.stackable else 1
    step = math.ceil(values.samples / max(count, 1))
    return [slice(at, min(at + step, values.samples)) for at in range(0, values.samples, step)]


def _slopes(
    curvature: Curvature, splits: Projection, losses: BatchLosses, samples: int
) -> tuple[torch.Tensor | float, torch.Tensor | None]:
    """Returns the derivatives of the mean of the splits' summed estimates by q and q~."""
    slope = curvature.slope(splits.q, losses) / samples
    if not curvature.sampled or splits.sampled is None:
        return slope, None
    return slope, curvature.sampled_slope(splits.sampled) / samples


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
