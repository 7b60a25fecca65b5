"""Graphs to try things on: with batch norms that are not trivial."""

from __future__ import annotations

import torch
from torch import nn

from morphir.ir.graph import Graph


@torch.no_grad()
def randomise_norms(graph: Graph, seed: int) -> None:
    """Gives every normalisation random statistics and a random affine map, in place.

    Freshly made ones are the identity, and would hide what a rewrite forgets.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in graph.modules():
        tensors = {**module._parameters, **module._buffers}  # pyright: ignore[reportPrivateUsage]
        norm = "running_mean" in tensors or isinstance(module, (nn.LayerNorm, nn.GroupNorm))
        for name in ("weight", "bias", "running_mean", "running_var") if norm else ():
            tensor = tensors.get(name)
            if tensor is not None:
                tensor.copy_(_values(name, tensor, generator))


def _values(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if name in {"weight", "running_var"}:
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.3
