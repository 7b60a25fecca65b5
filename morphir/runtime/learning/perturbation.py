"""What a change of y does at the edges, u = (sigma(y + delta) + sigma(y - delta))/2 - sigma(y), and back.

One method for each kind of region; a region that none knows better runs twice, or once on both signs stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from morphir.runtime.learning.precision import in_dtype, is_half_by_autocast, single, without_autocast
from morphir.runtime.learning.region import Region, RegionKind

Tensors = Sequence[torch.Tensor]
MaybeTensors = Sequence[torch.Tensor | None]


@dataclass(frozen=True)
class Perturbed:
    """One space's change on one batch.

    Attributes:
        doubled: 2u at each edge; None where the loss does not depend on the edge.
        vjp: Gradients by both sigma(y + delta) and sigma(y - delta), the same for both, to the gradients by
            delta.
    """

    doubled: MaybeTensors
    vjp: Callable[[MaybeTensors], list[torch.Tensor]]


# (region, ys, deltas, externals, a at each edge or None)
Perturb = Callable[[Region, Tensors, Tensors, Sequence[Any], MaybeTensors], Perturbed]


def _relu(
    region: Region, ys: Tensors, deltas: Tensors, externals: Sequence[Any], bases: MaybeTensors
) -> Perturbed:
    """For a single ReLU, 2u = max(|delta| - |y|, 0): delta's excess over the interval [-|y|, |y|]."""
    del region, externals, bases
    (y,), (delta,) = ys, deltas
    bound = y.abs()
    excess = delta.clamp(-bound, bound)
    torch.sub(delta, excess, out=excess)
    doubled = torch.abs(excess, out=bound)

    def vjp(gradients: MaybeTensors) -> list[torch.Tensor]:
        (gradient,) = gradients
        return [torch.zeros_like(delta) if gradient is None else excess.sign_().mul_(gradient)]

    return Perturbed([doubled], vjp)


@dataclass(frozen=True)
class _Evaluation:
    """The region, run on leaves that require grad."""

    inputs: Tensors
    outputs: Tensors

    @staticmethod
    def of(module: fx.GraphModule, inputs: Tensors, externals: Sequence[Any]) -> _Evaluation:
        with torch.enable_grad():
            leaves = [value.requires_grad_() for value in inputs]
            return _Evaluation(leaves, module(*leaves, *externals))

    def vjp(self, gradients: MaybeTensors) -> list[torch.Tensor]:
        pairs = [
            (out, g)
            for out, g in zip(self.outputs, gradients, strict=True)
            if g is not None and out.requires_grad
        ]
        if not pairs:
            return [torch.zeros_like(x) for x in self.inputs]
        outputs, wanted = [out for out, _ in pairs], [in_dtype(g, out.dtype) for out, g in pairs]
        found = torch.autograd.grad(outputs, self.inputs, wanted, allow_unused=True)
        reached = cast("Sequence[torch.Tensor | None]", found)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(self.inputs, reached, strict=True)]


def _stacked(
    region: Region, ys: Tensors, deltas: Tensors, externals: Sequence[Any], bases: MaybeTensors
) -> Perturbed:
    """Both signs in one call, stacked along the batch."""
    both = _Evaluation.of(
        region.module, [_both_signs(y, d) for y, d in zip(ys, deltas, strict=True)], externals
    )
    halves = [out.detach().chunk(2) for out in both.outputs]

    def vjp(gradients: MaybeTensors) -> list[torch.Tensor]:
        found = both.vjp([None if g is None else torch.cat((g, g)) for g in gradients])
        return [plus - minus for plus, minus in (g.chunk(2) for g in found)]

    return Perturbed(
        [_doubled_change(plus, minus, a) for (plus, minus), a in zip(halves, bases, strict=True)], vjp
    )


def _both_signs(y: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    # Twice delta, for its memory format: channels last must not become something else on the way.
    stacked = torch.cat((delta, delta))
    torch.add(y, delta, out=stacked[: y.shape[0]])
    torch.sub(y, delta, out=stacked[y.shape[0] :])
    return stacked


def _apart(
    region: Region, ys: Tensors, deltas: Tensors, externals: Sequence[Any], bases: MaybeTensors
) -> Perturbed:
    """One call for each sign, since what the region reads besides y has one batch."""
    up = _Evaluation.of(region.module, [y + d for y, d in zip(ys, deltas, strict=True)], externals)
    down = _Evaluation.of(region.module, [y - d for y, d in zip(ys, deltas, strict=True)], externals)

    def vjp(gradients: MaybeTensors) -> list[torch.Tensor]:
        return [p - m for p, m in zip(up.vjp(gradients), down.vjp(gradients), strict=True)]

    pairs = zip(up.outputs, down.outputs, bases, strict=True)
    return Perturbed([_doubled_change(p.detach(), m.detach(), a) for p, m, a in pairs], vjp)


def _doubled_change(
    plus: torch.Tensor, minus: torch.Tensor, base: torch.Tensor | None
) -> torch.Tensor | None:
    return None if base is None else (plus + minus).sub_(base, alpha=2)


def _general(
    region: Region, ys: Tensors, deltas: Tensors, externals: Sequence[Any], bases: MaybeTensors
) -> Perturbed:
    run = _stacked if region.stackable else _apart
    if not is_half_by_autocast(ys):
        return run(region, ys, deltas, externals, bases)
    ys, deltas, externals = ([single(value) for value in values] for values in (ys, deltas, externals))
    with without_autocast(ys[0].device.type):
        again = cast("Sequence[torch.Tensor]", region.module(*ys, *externals))
        pairs = zip(again, bases, strict=True)
        return run(region, ys, deltas, externals, [None if a is None else own for own, a in pairs])


PERTURBATIONS: Mapping[RegionKind, Perturb] = {"relu": _relu, "general": _general}
