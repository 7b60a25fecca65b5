"""Batch norm as a part of the linear operator before it: exact in evaluation mode, a pass over memory less.

norm(op(x, W) + b) = op(x, s W) + s (b - mean) + beta        with s = gamma / sqrt(var + eps)
                   = s op(x, W) + s (b - mean) + beta

The first line scales the kernel, the second what it computes: whichever is smaller. Where a kernel is larger
than its output, a scaled copy of it would cost more time and, kept from forward to backward, more memory.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from morphir.runtime.learning.linear_ops import Apply, Convolution


class FoldedNorm(nn.Module):
    """A linear operator followed by evaluation-mode batch norm, as one linear operator.

    Args:
        apply: The operator as a function of its kernel.
        linear: The module that owns the kernel.
        norm: The batch norm.
        out_axis: The kernel's axis of output channels.
        scales_kernel: Whether the kernel is scaled, else its output.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, apply: Apply, linear: nn.Module, norm: nn.Module, out_axis: int, *, scales_kernel: bool = True
    ) -> None:
        super().__init__()
        # In a tuple, since the modules are the graph's and must not become submodules of this one.
        self.parts = (cast(Any, linear), cast(Any, norm))
        self.apply_kernel = apply
        self.scales_kernel = scales_kernel
        self.scale_shape = [1] * cast(torch.Tensor, linear.weight).dim()
        self.scale_shape[out_axis] = -1
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Folds again, since the parameters or the running statistics may have been written to."""
        linear, norm = self.parts
        # The norm's own tables: at every step, for every norm, a module's look-up of a name costs more.
        held = cast("dict[str, Any]", vars(norm))
        affine, statistics = held["_parameters"], held["_buffers"]
        gamma, beta, mean = affine["weight"], affine["bias"], statistics["running_mean"]
        scale = torch.rsqrt(statistics["running_var"] + norm.eps)
        scale = scale if gamma is None else scale * gamma
        kernel, offset = linear.weight, linear.bias
        mean = mean if offset is None else mean - offset
        bias = -mean * scale if beta is None else torch.addcmul(beta, mean, scale, value=-1)
        scale = scale.view(self.scale_shape)
        weight = kernel * scale if self.scales_kernel else kernel.detach()
        # Plain attributes: a module would look at each whether it is a parameter, at every step.
        self.__dict__.update(bias=bias, scale=scale, weight=weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the normalised output."""
        if self.scales_kernel:
            return self.apply_kernel(x, self.weight, self.bias)
        y = self.apply_kernel(x, self.weight, None)
        return torch.addcmul(along_channels(self.bias, y), y, along_channels(self.scale, y))

    def input_gradient(self, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Returns the derivative by x, from the one by the output; of a convolution."""
        assert isinstance(self.apply_kernel, Convolution)
        if not self.scales_kernel:
            gradient = gradient * along_channels(self.scale, gradient)
        return self.apply_kernel.input_gradient(x, self.weight, gradient)


def along_channels(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Lays one value a channel out along dimension 1 of a tensor, in its precision."""
    return values.reshape(-1, *[1] * (like.dim() - 2)).to(like.dtype)
