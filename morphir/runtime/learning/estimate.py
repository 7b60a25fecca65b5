"""One space on one batch: the projections of its splits and prunes, and theta's gradient (DESIGN section 2).

With delta = op(x, theta), and the slopes of the estimates by q and q~::

    d delta_L / d delta+- = +- VJP_sigma(y +- delta)[ 1/2 (slope g + slope~ g~) ] / S
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from morphir.runtime.learning.curvature import BatchLosses, Curvature
from morphir.runtime.learning.folded_norm import along_channels
from morphir.runtime.learning.lowering import ProducerProgram, SplitProgram
from morphir.runtime.learning.model_pass import Pass
from morphir.runtime.learning.projection import EdgeValue, Project, Projection, RegionValues
from morphir.runtime.learning.region import Region
from morphir.runtime.learning.selection import take

_SLICE_BYTES = {"cpu": 1 << 20}
_LARGE_SLICE_BYTES = 1 << 26
"""The most of y that goes through a region at once: on a CPU what its caches hold, elsewhere what keeps the
device busy."""


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
    if curvature.sampled is None or splits.sampled is None:
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
