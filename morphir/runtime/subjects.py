"""Copies of graphs to try things on: in another floating dtype, with batch norms that are not trivial."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from morphir.ir.graph import ExampleInputs, Graph, TensorSpec


def in_dtype(graph: Graph, dtype: torch.dtype) -> Graph:
    """Casts a graph in place, and what it knows of its example inputs with it.

    Args:
        graph: The graph; returned.
        dtype: The floating dtype of its parameters, buffers and inputs.
    """

    def cast_spec(leaf: Any) -> Any:
        is_real = isinstance(leaf, TensorSpec) and leaf.dtype.is_floating_point
        return TensorSpec(leaf.shape, dtype) if is_real else leaf

    args, kwargs = pytree.tree_map(
        cast_spec,
        (graph.inputs.args, dict(graph.inputs.kwargs)),
        is_leaf=lambda leaf: isinstance(leaf, TensorSpec),
    )
    graph.inputs = ExampleInputs(args, kwargs)
    return graph.to(dtype)


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
