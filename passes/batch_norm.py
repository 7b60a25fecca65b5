"""``ReexpressBatchNorm``: makes the train-mode function the eval-mode function again after splits.

While theta is learned, batch norm uses running statistics; split children copy them, so the eval-mode
function is what was learned. In train mode batch norm uses the statistics of y + delta and y - delta, which
are not y's. So the children's statistics m', v' are estimated on data, and the affine map is written in
them::

    s = sqrt(v + eps),  s' = sqrt(v' + eps)
    gamma' = gamma s' / s,    beta' = beta + gamma (m' - m) / s

The eval-mode function is unchanged exactly; the train-mode function equals it up to the batches' sampling
error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn, optim

from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap
from morphir.ir.remarks import Remark
from morphir.ir.state import evaluation_mode, own_state
from passes.base import Pass, PassResult
from passes.moments import powers_of
from passes.rewriter import NewTensor, Rewriter

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


@dataclass(frozen=True)
class ReexpressBatchNorm(Pass):
    """Re-expresses the batch norms of split channels in statistics estimated on data.

    Attributes:
        batches: Model inputs (a tensor, or a tuple of arguments); a handful of training batches will do.
        index_maps: The maps of the splits that were just applied; only their children are re-estimated.
    """

    name: ClassVar[str] = "reexpress-batch-norm"

    batches: Iterable[Any] = field(default=(), repr=False)
    index_maps: tuple[IndexMap, ...] = ()

    def apply(self, rewriter: Rewriter) -> PassResult:
        """Estimates the children's statistics in evaluation mode and rewrites the affine maps."""
        children = dict(_children(rewriter.graph, self.index_maps))
        obstacles = _obstacles(rewriter.graph, children)
        targets = {path: mask for path, mask in children.items() if path not in obstacles}
        remarks = tuple(obstacles.values())
        if not targets:
            return PassResult(remarks=remarks)
        moments = _estimate(rewriter.graph, list(targets), self.batches)
        new: dict[str, NewTensor] = {}
        for path, mask in targets.items():
            norm = _norm(rewriter.graph, path)
            found = _reexpress(norm, moments[path], mask, rewriter.optimizer)
            new.update({f"{path}.{name}": tensor for name, tensor in found.items()})
        rewriter.replace_tensors(new)
        return PassResult(remarks=remarks)


def _children(graph: Graph, maps: Sequence[IndexMap]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every batch norm that holds split children, with a mask of these."""
    signs = {m.space: m.signs for m in maps if any(m.signs)}
    masks: dict[str, torch.Tensor] = {}
    for name, space in graph.spaces.items():
        for binding in space.bindings:
            path, _, tensor = binding.parameter.rpartition(".")
            module = graph.get_submodule(path)
            if name in signs and isinstance(module, BatchNorm) and tensor in {"weight", "running_mean"}:
                mask = torch.tensor([g >= 0 and signs[name][g] != 0 for g in binding.groups])
                masks[path] = masks[path] | mask if path in masks else mask
    yield from ((path, mask) for path, mask in masks.items() if bool(mask.any()))


def _norm(graph: Graph, path: str) -> BatchNorm:
    module = graph.get_submodule(path)
    assert isinstance(module, BatchNorm)
    return module


def _obstacles(graph: Graph, paths: Iterable[str]) -> dict[str, Remark]:
    """Returns the batch norms that cannot be re-expressed, with what is said of them."""
    holders = Counter(id(tensor) for module in graph.modules() for tensor in own_state(module).values())
    found: dict[str, Remark] = {}
    for path in paths:
        norm = _norm(graph, path)
        if not norm.affine or not norm.track_running_stats or norm.running_mean is None:
            message = f"{path} has no affine map or no running statistics, so its train-mode function changes"
            found[path] = Remark("missed", "batch-norm-not-affine", message)
        elif any(holders[id(tensor)] > 1 for tensor in own_state(norm).values()):
            message = f"{path} shares tensors with another module, so its train-mode function changes"
            found[path] = Remark("missed", "batch-norm-shared", message)
    return found


class _Moments:
    """Sums of a batch norm's inputs, channel by channel, in float64 where the device has it."""

    def __init__(self) -> None:
        self.count = 0
        self.total: torch.Tensor | None = None
        self.squares: torch.Tensor | None = None

    def add(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Adds one batch; the signature is a forward pre-hook's."""
        del module
        values: torch.Tensor = args[0].detach()
        values = values.float() if values.device.type == "mps" else values.double()
        flat = values.movedim(1, 0).flatten(1)
        total, squares = flat.sum(1), flat.square().sum(1)
        self.count += flat.shape[1]
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares

    def mean_and_variance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the mean and the unbiased variance, as running statistics hold them."""
        assert self.total is not None and self.squares is not None
        mean = self.total / self.count
        variance = (
            (self.squares / self.count - mean.square()).clamp_min(0) * self.count / max(self.count - 1, 1)
        )
        return mean, variance


@torch.no_grad()
def _estimate(graph: Graph, paths: Sequence[str], batches: Iterable[Any]) -> Mapping[str, _Moments]:
    moments = {path: _Moments() for path in paths}
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(graph))
        for path, sums in moments.items():
            stack.callback(_norm(graph, path).register_forward_pre_hook(sums.add).remove)
        for batch in batches:
            graph(*batch) if isinstance(batch, (tuple, list)) else graph(batch)
    return moments


@torch.no_grad()
def _reexpress(
    norm: BatchNorm, moments: _Moments, mask: torch.Tensor, optimizer: optim.Optimizer | None
) -> Mapping[str, NewTensor]:
    """Returns the tensors of a batch norm in new statistics, by their names in it."""
    if not moments.count:
        return {}
    assert norm.running_mean is not None and norm.running_var is not None
    mask = mask.to(norm.running_mean.device)
    found_mean, found_variance = moments.mean_and_variance()
    mean = torch.where(mask, found_mean.to(norm.running_mean.dtype), norm.running_mean)
    variance = torch.where(mask, found_variance.to(norm.running_var.dtype), norm.running_var)
    old, new = (norm.running_var + norm.eps).sqrt(), (variance + norm.eps).sqrt()
    shift, ratio = (mean - norm.running_mean) / old, new / old
    coordinates = _Coordinates(shift, ratio)
    return {
        "weight": NewTensor(
            norm.weight * ratio,
            coordinates.gradient(norm.weight.grad, norm.bias.grad, 1),
            {} if optimizer is None else dict(coordinates.moments(optimizer, norm)),
        ),
        "bias": NewTensor(norm.bias + norm.weight * shift, norm.bias.grad),
        "running_mean": NewTensor(mean),
        "running_var": NewTensor(variance),
    }


@dataclass(frozen=True)
class _Coordinates:
    """New coordinates of an affine map, beta' = beta + gamma shift and gamma' = gamma ratio.

    By the chain rule, g_gamma' = (g_gamma - shift g_beta) / ratio, and g_beta' = g_beta; second moments take
    the squares of the factors.
    """

    shift: torch.Tensor
    ratio: torch.Tensor

    def gradient(
        self, gamma: torch.Tensor | None, beta: torch.Tensor | None, power: int
    ) -> torch.Tensor | None:
        """Returns gamma's gradient, or a moment of it of the given power; None where gamma has none."""
        if gamma is None or beta is None:
            return gamma
        return gamma / self.ratio**power + (-1) ** power * (self.shift / self.ratio) ** power * beta

    def moments(self, optimizer: optim.Optimizer, norm: BatchNorm) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields those of gamma's moments that change."""
        gammas, betas = optimizer.state.get(norm.weight, {}), optimizer.state.get(norm.bias, {})
        for name, power in powers_of(optimizer, norm.weight).items():
            if power in (1, 2) and name in betas:
                moved = self.gradient(gammas[name], betas[name], power)
                assert moved is not None
                yield name, moved
