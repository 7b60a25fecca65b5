"""A convolution's derivatives without autograd against autograd's, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from morphir.runtime.learning.folded_norm import FoldedNorm
from morphir.runtime.learning.linear_ops import Convolution, module_apply

_CASES = [
    (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 7, 6)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), (5, 4, 9, 8)),
    (nn.Conv2d(6, 6, 3, padding=1, groups=6), (5, 6, 5, 5)),
    (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 1, 1)),
    (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 1, 4)),
    (nn.Conv1d(4, 6, 3, padding=(2,)), (5, 4, 7)),
    (nn.Conv3d(4, 6, 3, padding=1), (2, 4, 1, 5, 3)),
]
"""The fourth and fifth, and the last, have taps that meet padding alone."""


@pytest.mark.parametrize(("module", "shape"), _CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_derivatives_are_autograds(module: nn.Module, shape: tuple[int, ...], channels_last: bool) -> None:
    if channels_last and len(shape) != 4:
        pytest.skip("a memory format of images")
    convolution = module_apply(module.double())
    assert isinstance(convolution, Convolution)
    x = torch.randn(shape, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    kernel = torch.randn_like(module.weight).requires_grad_()
    y = module._conv_forward(x, kernel, None)
    gradient = torch.randn_like(y)
    by_x, by_kernel = torch.autograd.grad(y, (x, kernel), gradient)
    with torch.no_grad():
        torch.testing.assert_close(convolution(x, kernel, None), y)
        torch.testing.assert_close(convolution.input_gradient(x, kernel, gradient), by_x)
        torch.testing.assert_close(convolution.kernel_gradient(x, kernel, gradient), by_kernel)


@pytest.mark.parametrize("scales_kernel", [False, True])
def test_the_derivative_through_a_folded_norm(scales_kernel: bool) -> None:
    linear, norm = nn.Conv2d(4, 6, 3, padding=1).double(), nn.BatchNorm2d(6).double().eval()
    for statistic in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        torch.nn.init.uniform_(statistic, 0.5, 1.5)
    apply = module_apply(linear)
    assert apply is not None
    folded = FoldedNorm(apply, linear, norm, 0, scales_kernel=scales_kernel)
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    y = norm(linear(x))
    gradient = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, gradient)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), y)
        torch.testing.assert_close(folded.input_gradient(x, gradient), expected)
