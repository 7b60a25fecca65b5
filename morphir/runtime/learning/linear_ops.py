"""Leaf modules as functions of their kernel: ``delta = op(x, theta)`` is the same with another kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Apply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""``apply(x, kernel, bias)``."""


def module_apply(module: nn.Module) -> Apply | None:
    """Returns a leaf module as a function of its kernel and bias, or None where it has no rule."""
    return next((make(module) for kind, make in _MODULES if isinstance(module, kind)), None)


def _convolution(module: Any) -> Apply:
    return module._conv_forward


def _transposed(function: Callable[..., torch.Tensor]) -> Callable[[Any], Apply]:
    def make(module: Any) -> Apply:
        def apply(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            return function(
                x,
                kernel,
                bias,
                module.stride,
                module.padding,
                module.output_padding,
                module.groups,
                module.dilation,
            )

        return apply

    return make


def _linear(module: Any) -> Apply:
    del module
    return functional.linear


_MODULES: tuple[tuple[type[nn.Module], Callable[[Any], Apply]], ...] = (
    (nn.ConvTranspose1d, _transposed(functional.conv_transpose1d)),
    (nn.ConvTranspose2d, _transposed(functional.conv_transpose2d)),
    (nn.ConvTranspose3d, _transposed(functional.conv_transpose3d)),
    (nn.Conv1d, _convolution),
    (nn.Conv2d, _convolution),
    (nn.Conv3d, _convolution),
    (nn.Linear, _linear),
)
