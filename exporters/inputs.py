"""Random inputs of the kind that a graph was traced with."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from morphir.ir.inputs import ExampleInputs, TensorSpec


def random_inputs(
    inputs: ExampleInputs, device: torch.device, *, seed: int = 0, batch_size: int | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns positional and keyword inputs with random values, the same for the same seed.

    Args:
        inputs: What the example inputs looked like.
        device: Where to put them.
        seed: Of the values; the global generators are left alone.
        batch_size: Replaces the leading extent of every tensor that leads with the example's batch size.
    """
    generator = torch.Generator().manual_seed(seed)

    def make(leaf: Any) -> Any:
        if not isinstance(leaf, TensorSpec):
            return leaf
        shape = leaf.shape
        if batch_size is not None and shape and shape[0] == inputs.batch_size:
            shape = (batch_size, *shape[1:])
        return _random(shape, leaf.dtype, generator).to(device)

    made = pytree.tree_map(
        make, (inputs.args, dict(inputs.kwargs)), is_leaf=lambda leaf: isinstance(leaf, TensorSpec)
    )
    return cast("tuple[tuple[Any, ...], dict[str, Any]]", made)


def _random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)
