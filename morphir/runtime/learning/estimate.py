"""One space on one batch: the projections of its splits and prunes, and theta's gradient (DESIGN section 2).

With delta = op(x, theta), and the slopes of the estimates by q and q~::

    d delta_L / d delta+- = +- VJP_sigma(y +- delta)[ 1/2 (slope g + slope~ g~) ] / S
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from morphir.runtime.learning.curvature import Curvature
from morphir.runtime.learning.folded_norm import along_channels
from morphir.runtime.learning.model_pass import Pass
from morphir.runtime.learning.precision import in_dtype
from morphir.runtime.learning.programs import ProducerProgram, SplitProgram
from morphir.runtime.learning.projection import (
    EdgeValue,
    PlainProjection,
    Project,
    Projection,
    RegionValues,
)
from morphir.runtime.learning.region import Region
from morphir.runtime.learning.selection import take

_SLICE_BYTES = 1 << 26
"""The most of y that goes through a region at once where that is no matter of a CPU's caches: what keeps the
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
    values_of = run.captured.__getitem__
    deltas = [_Delta.of(producer, thetas[producer.parameter], values_of) for producer in split.producers]
    values = _region_values(split, deltas, edges, run)
    slices = _slices(split.region, values, project.cpu_slice_bytes)
    slopes = curvature.slopes(run.losses, run.samples)
    prunes: list[Projection] = []
    splits: list[Projection] = []
    gradients: Sequence[torch.Tensor] = values.deltas
    for samples in slices:
        if len(slices) == 1:
            projected = project(values, slopes)
            gradients = projected.gradients
        else:
            part = values.part(samples)
            projected = project(part, slopes.of(samples))
            # A slice's delta is needed no more, and makes room for its gradient.
            for delta, gradient in zip(part.deltas, projected.gradients, strict=True):
                if gradient is not delta:
                    delta.copy_(gradient)
        prunes.append(projected.prunes)
        splits.append(projected.splits)
    found: dict[str, torch.Tensor] = {}
    for producer, delta, gradient in zip(split.producers, deltas, gradients, strict=True):
        own = delta.pull(in_dtype(gradient, delta.value.dtype))
        found[producer.parameter] = found[producer.parameter] + own if producer.parameter in found else own
    return SplitEstimate(Projection.joined(prunes), Projection.joined(splits), found)


def changes_of_splits(
    split: SplitProgram, thetas: Mapping[str, torch.Tensor], edges: Sequence[EdgeValue | None], run: Pass
) -> list[torch.Tensor | None]:
    """Returns twice u of all splits at each edge; None where the loss does not depend on it.

    Args:
        split: The space's program.
        thetas: Producer parameter to theta.
        edges: The edges' values.
        run: The batch.
    """
    values_of = run.captured.__getitem__
    deltas = [_Delta.of(producer, thetas[producer.parameter], values_of) for producer in split.producers]
    values = _region_values(split, deltas, edges, run)
    slices = _slices(split.region, values, PlainProjection.cpu_slice_bytes)
    plain = PlainProjection(split.region)
    parts = [plain.perturbed(values if len(slices) == 1 else values.part(own)).doubled for own in slices]
    known = [[u for u in own if u is not None] for own in zip(*parts, strict=True)]
    return [torch.cat(own) if own else None for own in known]


def delta_of(producer: ProducerProgram, theta: torch.Tensor, captured: Callable[[int], Any]) -> torch.Tensor:
    """Returns op(theta, x) of one producer, on the part of y that the region reads.

    Args:
        producer: The producer.
        theta: Its theta, for all splits.
        captured: From a slot to its value.
    """
    return _Delta.of(producer, theta, captured).value


def _region_values(
    split: SplitProgram, deltas: Sequence[_Delta], edges: Sequence[EdgeValue | None], run: Pass
) -> RegionValues:
    return RegionValues(
        [take(producer.part, run.captured[producer.y]) for producer in split.producers],
        [delta.value for delta in deltas],
        [take(external.part, run.captured[external.slot]) for external in split.externals],
        edges,
        run.samples,
        run.sampled is not None,
    )


def _slices(region: Region, values: RegionValues, cpu_bytes: int) -> list[slice]:
    """Returns the samples that go through a region at once."""
    most = cpu_bytes if values.ys[0].device.type == "cpu" else _SLICE_BYTES
    size = max([y.nbytes for y in values.ys])
    count = min(math.ceil(size / most), values.samples) if region.stackable else 1
    step = math.ceil(values.samples / max(count, 1))
    return [slice(at, min(at + step, values.samples)) for at in range(0, values.samples, step)]


@dataclass(frozen=True)
class _Delta:
    """op(theta, x) of one producer, in y's precision and, where batch norm is folded in, in y's units.

    Attributes:
        value: The change, on the part of y that the region reads.
        pull: From the derivative by it to the one by theta.
    """

    value: torch.Tensor
    pull: Callable[[torch.Tensor], torch.Tensor]

    @staticmethod
    def of(producer: ProducerProgram, theta: torch.Tensor, captured: Callable[[int], Any]) -> _Delta:
        dtype, norm = captured(producer.y).dtype, producer.folded
        values = [_in_precision(captured(slot), dtype) for slot in producer.sources]
        scale = None if norm is None else _own_rows(producer, norm.scale)
        scales_kernel = norm is not None and norm.scales_kernel
        partial = producer.rows is None and producer.part

        def change(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            kernel = in_dtype(theta * scale if scale is not None and scales_kernel else theta, dtype)
            delta = producer.op.apply(kernel, *values)
            if scale is not None and not scales_kernel:
                delta = delta * along_channels(scale, delta)
            return kernel, take(producer.part, delta) if partial else delta

        by_kernel = None if partial else producer.op.kernel_gradient
        if by_kernel is None:
            with torch.enable_grad():
                _, recorded = change(theta)
            return _Delta(
                recorded.detach(), lambda gradient: torch.autograd.grad(recorded, theta, gradient)[0]
            )
        kernel, delta = change(theta.detach())

        def pull(gradient: torch.Tensor) -> torch.Tensor:
            if scale is not None and not scales_kernel:
                gradient = gradient * along_channels(scale, gradient)
            found = in_dtype(by_kernel(kernel, gradient, *values), theta.dtype)
            return found * scale if scale is not None and scales_kernel else found

        return _Delta(delta, pull)


def _own_rows(producer: ProducerProgram, tensor: torch.Tensor) -> torch.Tensor:
    return tensor if producer.rows is None else producer.rows.take(tensor)


def _in_precision(value: Any, dtype: torch.dtype) -> Any:
    return in_dtype(value, dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
