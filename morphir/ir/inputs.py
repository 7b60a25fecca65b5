"""What the example inputs looked like: their structure, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from morphir.ir.values import map_leaves


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of an example input; the device is the graph's own."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: torch.Tensor) -> TensorSpec:
        """Describes an actual tensor."""
        return TensorSpec(tuple(tensor.shape), tensor.dtype)

    def in_dtype(self, dtype: torch.dtype) -> TensorSpec:
        """Returns the same shape in another dtype, if this is a floating one."""
        return TensorSpec(self.shape, dtype) if self.dtype.is_floating_point else self

    def empty(self, device: torch.device) -> torch.Tensor:
        """Returns an uninitialised tensor of this shape."""
        return torch.empty(self.shape, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class ExampleInputs:
    """The example inputs' structure: a pytree with a :class:`TensorSpec` for each tensor."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ExampleInputs:
        """Describes actual inputs."""
        args, kwargs = map_leaves(TensorSpec.of, (args, dict(kwargs)))
        return ExampleInputs(args, kwargs)

    def materialise(self, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns uninitialised inputs of this structure (inside a fake mode: fake ones)."""
        made = map_leaves(lambda spec: spec.empty(device), (self.args, dict(self.kwargs)), TensorSpec)
        return cast("tuple[tuple[Any, ...], dict[str, Any]]", made)

    def in_dtype(self, dtype: torch.dtype) -> ExampleInputs:
        """Returns the same structure with floating tensors of another dtype."""
        tree = (self.args, dict(self.kwargs))
        args, kwargs = map_leaves(lambda spec: spec.in_dtype(dtype), tree, TensorSpec)
        return ExampleInputs(args, kwargs)

    @property
    def batch_size(self) -> int | None:
        """The leading extent of the first tensor."""
        leaves = pytree.tree_leaves(
            (self.args, dict(self.kwargs)), is_leaf=lambda leaf: isinstance(leaf, TensorSpec)
        )
        shapes = [leaf.shape for leaf in leaves if isinstance(leaf, TensorSpec) and leaf.shape]
        return shapes[0][0] if shapes else None
