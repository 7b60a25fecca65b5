"""Every kind of convolution: dense, grouped, depthwise, transposed, dilated; in one to three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Prove = Callable[..., Any]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_grouped(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.two(net.one(x).relu())),
        {"one": "3 exact", "two": "4 exact"},
        onnx=True,
        one=conv(3, 6, 3),
        two=conv(6, 8, 3, groups=2),
        head=conv(8, 2),
    )


def test_groups_of_three_channels(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.two(net.one(x).relu())),
        {"one": "3 exact", "two": "2 exact"},
        one=conv(3, 12, 3),
        two=conv(12, 8, 3, groups=4),
        head=conv(8, 2),
    )


def test_depthwise(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.mid(net.one(x)).relu()),
        {"one": "4 exact"},
        onnx=True,
        one=conv(3, 4),
        mid=conv(4, 4, 3, groups=4),
        head=conv(4, 2),
    )


def test_depthwise_with_multiplier(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.mid(net.one(x)).relu()),
        {"one": "4 exact"},
        one=conv(3, 4),
        mid=nn.Conv2d(4, 8, 3, groups=4, dilation=2, padding=2),
        head=conv(8, 2),
    )


def test_depthwise_on_the_model_input(prove: Prove) -> None:
    """Its nine channels are three for each of the model's three."""
    prove(
        lambda net, x: net.head(net.one(net.mid(x))),
        {"one": "4 exact"},
        mid=conv(3, 9, 3, groups=3),
        one=conv(9, 4),
        head=conv(4, 2),
    )


def test_transposed(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.three(net.two(net.one(x)))),
        {"one": "3 exact", "two": "3 exact", "three": "3 exact"},
        onnx=True,
        one=conv(3, 6),
        two=nn.ConvTranspose2d(6, 6, 2, stride=2, groups=2),
        three=nn.ConvTranspose2d(6, 3, 3, dilation=2),
        head=conv(3, 2),
    )


def test_transposed_depthwise(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.up(net.one(x))),
        {"one": "4 exact"},
        one=conv(3, 4),
        up=nn.ConvTranspose2d(4, 8, 2, stride=2, groups=4),
        head=conv(8, 2),
    )


def test_one_dimension(prove: Prove) -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 6, 3, stride=2),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(6, 6, 1, groups=2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )
    prove(model, {"0": "3 exact", "4": "3 exact"}, 2, 3, 16)


def test_three_dimensions(prove: Prove) -> None:
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.AvgPool3d(2),
        nn.Conv3d(4, 4, 3, padding=1, groups=4),
        nn.ConvTranspose3d(4, 3, 2),
        nn.AdaptiveAvgPool3d((1, 1, 1)),
        nn.Flatten(),
        nn.Linear(3, 2),
    )
    prove(model, {"0": "4 exact", "5": "3 exact"}, 2, 1, 4, 6, 6)


def test_functional_with_bare_parameters(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = F.conv2d(x, net.kernel, net.bias, padding=1).relu()
        h = F.conv2d(h, net.depth, groups=4)
        return F.conv_transpose2d(h, net.last)

    prove(
        forward,
        {"kernel": "4 exact"},
        onnx=True,
        kernel=nn.Parameter(torch.randn(4, 3, 3, 3)),
        bias=nn.Parameter(torch.randn(4)),
        depth=nn.Parameter(torch.randn(4, 1, 3, 3)),
        last=nn.Parameter(torch.randn(4, 2, 2, 2)),
    )


def test_convolution_over_channels_as_a_sequence(prove: Prove) -> None:
    """ECA: a window over the channels sees which of them are neighbours."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        gate = net.eca(h.mean((2, 3)).unsqueeze(1)).squeeze(1).sigmoid()
        return net.head(h * gate[:, :, None, None])

    prove(
        forward,
        {"one": "4 frozen:window-over-channels", "eca": "1 frozen:single-channel"},
        one=conv(3, 4),
        eca=nn.Conv1d(1, 1, 3, padding=1, bias=False),
        head=conv(4, 2),
    )


def test_kernel_made_by_a_function_of_parameters(prove: Prove) -> None:
    """Weight standardisation runs over a kernel's columns: no theta of its own, and what it reads stays."""

    def forward(net: Any, x: Tensor) -> Tensor:
        kernel = net.kernel - net.kernel.mean((1, 2, 3), keepdim=True)
        return net.head(F.conv2d(net.one(x), kernel))

    prove(
        forward,
        {"one": "4 frozen:computed-kernel", "kernel": "5 frozen:computed-kernel"},
        one=conv(3, 4),
        kernel=nn.Parameter(torch.randn(5, 4, 1, 1)),
        head=conv(5, 2),
    )


def test_unfolded_windows(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        windows = F.unfold(net.one(x), 2, stride=2)
        h = (net.kernel @ windows).relu()
        return net.head(F.fold(h, (8, 8), 2, stride=2))

    prove(
        forward,
        {"one": "4 exact", "kernel": "3 exact"},
        one=conv(3, 4),
        kernel=nn.Parameter(torch.randn(12, 16)),
        head=conv(3, 2),
    )


def test_unfolded_by_modules_and_by_method(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.fold(net.unfold(net.one(x)))
        strips = h.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))
        return net.head(strips)

    prove(
        forward,
        {"one": "4 exact"},
        one=conv(3, 4),
        unfold=nn.Unfold(2, stride=2),
        fold=nn.Fold((8, 8), 2, stride=2),
        head=conv(4, 2),
    )
