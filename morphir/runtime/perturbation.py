"""What a change of y does at the edges: u = (sigma(y + delta) + sigma(y - delta))/2 - sigma(y), and the way back.

One method for each kind of region; a region that none knows better runs twice, or once on both signs stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from morphir.runtime.region import Region, RegionKind

Tensors = Sequence[torch.Tensor]
MaybeTensors = Sequence[torch.Tensor | None]


@dataclass(frozen=True)
class Perturbed:
    """One space's change on one batch.

    Attributes:
        changes: u at each edge; None where nothing depends on the edge.
        vjp: Gradients by both sigma(y + delta) and sigma(y - delta), the same for both, to the gradients by delta.
    """

    changes: MaybeTensors
    vjp: Callable[[MaybeTensors], list[torch.Tensor]]


# (region, ys, deltas, externals, a at each edge or None)
Perturb = Callable[[Region, Tensors, Tensors, Sequence[Any], MaybeTensors], Perturbed]


def _relu(
    region: Region, ys: Tensors, deltas: Tensors, externals: Sequence[Any], bases: MaybeTensors
) -> Perturbed:
    """For a single ReLU, u = 1/2 max(|delta| - |y|, 0): half of delta's excess over the interval [-|y|, |y|]."""
    del region, externals, bases
    (y,), (delta,) = ys, deltas
    bound = y.abs()
    excess = delta - delta.clamp(-bound, bound)

    def vjp(gradients: MaybeTensors) -> list[torch.Tensor]:
        (gradient,) = gradients
        return [torch.zeros_like(delta) if gradient is None else gradient * excess.sign()]

    return Perturbed([excess.abs().mul_(0.5)], vjp)


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
        pairs = [(out, g) for out, g in zip(self.outputs, gradients, strict=True) if g is not None]
        found = torch.autograd.grad(
            [o for o, _ in pairs], self.inputs, [g for _, g in pairs], allow_unused=True
        )
        return [torch.zeros_like(x) if g is None else g for x, g in zip(self.inputs, found, strict=True)]


def _stacked(region: Region, ys: Tensors, deltas: Tensors, bases: MaybeTensors) -> Perturbed:
    """Both signs in one call, stacked along the batch."""
    both = _Evaluation.of(region.module, [_both_signs(y, d) for y, d in zip(ys, deltas, strict=True)], ())
    halves = [out.detach().chunk(2) for out in both.outputs]

    def vjp(gradients: MaybeTensors) -> list[torch.Tensor]:
        found = both.vjp([None if g is None else torch.cat((g, g)) for g in gradients])
        return [plus - minus for plus, minus in (g.chunk(2) for g in found)]

    return Perturbed([_change(plus, minus, a) for (plus, minus), a in zip(halves, bases, strict=True)], vjp)


def _both_signs(y: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    stacked = y.new_empty((2 * y.shape[0], *y.shape[1:]))
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
    return Perturbed([_change(p.detach(), m.detach(), a) for p, m, a in pairs], vjp)


def _change(plus: torch.Tensor, minus: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor | None:
    return None if base is None else (plus + minus).mul_(0.5).sub_(base)


def _general(
    region: Region, ys: Tensors, deltas: Tensors, externals: Sequence[Any], bases: MaybeTensors
) -> Perturbed:
    if region.stackable:
        return _stacked(region, ys, deltas, bases)
    return _apart(region, ys, deltas, externals, bases)


PERTURBATIONS: Mapping[RegionKind, Perturb] = {"relu": _relu, "general": _general}
