"""Batch norm folded into the linear operator before it: exact in evaluation mode, one pass over memory less.

norm(op(x, W) + b) = op(x, s W) + s (b - mean) + beta        with s = gamma / sqrt(var + eps)
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from morphir.runtime.learning.linear_ops import Apply


class FoldedNorm(nn.Module):
    """A linear operator followed by evaluation-mode batch norm, as one linear operator.

    Args:
        apply: The operator as a function of its kernel.
        linear: The module that owns the kernel.
        norm: The batch norm.
        out_axis: The kernel's axis of output channels.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor

    def __init__(self, apply: Apply, linear: nn.Module, norm: nn.Module, out_axis: int) -> None:
        super().__init__()
        # In a tuple, since the modules are the graph's and must not become submodules of this one.
        self.parts = (cast(Any, linear), cast(Any, norm))
        self.apply_kernel = apply
        self.scale_shape = [1] * cast(torch.Tensor, linear.weight).dim()
        self.scale_shape[out_axis] = -1
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Folds again, since the parameters or the running statistics may have been written to."""
        linear, norm = self.parts
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = (
            -norm.running_mean * scale if linear.bias is None else (linear.bias - norm.running_mean) * scale
        )
        self.bias = shift if norm.bias is None else shift + norm.bias
        self.scale = scale.view(self.scale_shape)
        self.weight = linear.weight * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the normalised output."""
        return self.apply_kernel(x, self.weight, self.bias)
