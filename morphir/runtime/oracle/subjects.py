"""Graphs to try things on: with statistics, affine maps and scales that are not trivial."""

from __future__ import annotations

import torch

from morphir.ir.graph import Graph


@torch.no_grad()
def randomise_norms(graph: Graph, seed: int) -> None:
    """Gives running statistics, and every parameter whose entries are all the same, random values, in place.

    Fresh affine maps are the identity, fresh biases are zero, and layer scales start at zero or close to it:
    all of these would hide what a rewrite forgets.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in graph.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and bool((parameter == parameter.flatten()[:1]).all()):
                parameter.copy_(_values(parameter, generator, positive=bool(parameter.flatten()[:1].any())))
        for name, buffer in module.named_buffers(recurse=False):
            if name in {"running_mean", "running_var"}:
                buffer.copy_(_values(buffer, generator, positive=name == "running_var"))


def _values(tensor: torch.Tensor, generator: torch.Generator, *, positive: bool) -> torch.Tensor:
    """Returns values around 1 that are positive, or around 0."""
    if positive:
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.3
