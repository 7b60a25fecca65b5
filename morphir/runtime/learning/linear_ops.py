"""Leaf modules as functions of their kernel: ``delta = op(x, theta)`` is the same with another kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from morphir.runtime.learning.axes import along_axes
from morphir.runtime.learning.live_taps import LiveTaps, live_taps
from morphir.runtime.learning.precision import in_dtype

Apply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""``apply(x, kernel, bias)``."""


def module_apply(module: nn.Module) -> Apply | None:
    """Returns a leaf module as a function of its kernel and bias, or None where it has no rule."""
    return next((make(module) for kind, make in _MODULES if isinstance(module, kind)), None)


_CONVOLUTIONS: tuple[tuple[Any, Callable[..., torch.Tensor], int], ...] = (
    (nn.Conv1d, functional.conv1d, 1),
    (nn.Conv2d, functional.conv2d, 2),
    (nn.Conv3d, functional.conv3d, 3),
)


_Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], LiveTaps | None]
"""Stride, padding and dilation along the spatial axes; the taps that meet values, where not all do."""


class Convolution:
    """A convolution as a function of its kernel, and its derivatives without autograd.

    Args:
        module: Whose options it has.
        convolve: PyTorch's function.
        axes: Number of spatial axes.
    """

    def __init__(self, module: Any, convolve: Callable[..., torch.Tensor], axes: int) -> None:
        self._module = module
        self._convolve = convolve
        self._axes = axes
        self._last: tuple[Any, _Geometry | None] = None, None

    def __call__(self, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Returns the convolution."""
        stride, padding, dilation, live = self._geometry(x, kernel)
        if live is not None:
            kernel, padding = live.of(kernel), live.padding
        return self._convolve(x, kernel, bias, stride, padding, dilation, self._module.groups)

    def input_gradient(self, x: torch.Tensor, kernel: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Returns the derivative by what is convolved, from the one by the result, in its dtype."""
        return self._backward(x, kernel, gradient, 0)

    def kernel_gradient(self, x: torch.Tensor, kernel: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Returns the derivative by the kernel, from the one by the result, in its dtype."""
        return self._backward(x, kernel, gradient, 1)

    def _backward(
        self, x: torch.Tensor, kernel: torch.Tensor, gradient: torch.Tensor, wanted: int
    ) -> torch.Tensor:
        stride, padding, dilation, live = self._geometry(x, kernel)
        used, padding = (kernel, padding) if live is None else (live.of(kernel), live.padding)
        # As autocast would have had them in the forward pass.
        x, used = in_dtype(x, gradient.dtype), in_dtype(used.detach(), gradient.dtype)
        zeros, mask = [0] * self._axes, [number == wanted for number in range(3)]
        options = (stride, padding, dilation, False, zeros, self._module.groups, mask)
        found = torch.ops.aten.convolution_backward.default(gradient, x, used, None, *options)[wanted]
        if live is None or wanted == 0:
            return found
        whole = torch.zeros_like(kernel, dtype=gradient.dtype)
        live.of(whole).copy_(found)
        return whole

    def _geometry(self, x: torch.Tensor, kernel: torch.Tensor) -> _Geometry:
        module, axes = self._module, self._axes
        # As PyTorch does, from the kernel itself, whatever the module says of its size.
        key = (x.shape[-axes:], kernel.shape[2:], module.stride, module.padding, module.dilation)
        # Most calls are as the last one was; a look-up in a table costs more.
        last, geometry = self._last
        if geometry is None or key != last:
            stride, padding, dilation = (along_axes(option, axes) for option in key[2:])
            taps = live_taps(key[0], key[1], stride, padding, dilation)
            geometry = stride, padding, dilation, taps
            self._last = key, geometry
        return geometry


def _convolution(module: Any) -> Apply:
    forward = module._conv_forward
    own = getattr(forward, "__func__", None)
    found = next(((call, n) for kind, call, n in _CONVOLUTIONS if own is kind._conv_forward), None)
    if found is None or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return forward
    return Convolution(module, *found)


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
