"""Shortcuts: what is added to what ties them, group by group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

Prove = Callable[..., Any]


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def normed(inputs: int, outputs: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, bias=False, **options), nn.BatchNorm2d(outputs), nn.ReLU())


def test_identity_shortcut(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        return net.head(h + net.second(net.first(h)))

    prove(
        forward,
        {"stem.0": "4 exact", "first.0": "6 exact"},
        onnx=True,
        stem=normed(3, 4),
        first=normed(4, 6),
        second=conv(6, 4),
        head=conv(4, 2),
    )


def test_projection_shortcut(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        return net.head((net.short(h) + net.long(h)).relu())

    prove(
        forward,
        {"stem.0": "4 exact", "short": "6 exact"},
        stem=normed(3, 4),
        short=conv(4, 6, 1, stride=2),
        long=normed(4, 6, stride=2),
        head=conv(6, 2),
    )


def test_shortcut_to_the_model_input(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(x + net.second(net.first(x))),
        {"first.0": "4 exact", "second": "3 frozen:model-input"},
        first=normed(3, 4),
        second=conv(4, 3),
        head=conv(3, 2),
    )


def test_zero_padded_shortcut(prove: Prove) -> None:
    """Zeros stand beside whatever they meet: all eight channels may be split, four of them in both."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        return net.head(F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + net.second(net.first(h)))

    prove(
        forward,
        {"stem.0": "4 exact", "first.0": "6 exact", "second": "4 exact"},
        onnx=True,
        stem=normed(3, 4),
        first=normed(4, 6, stride=2),
        second=conv(6, 8),
        head=conv(8, 2),
    )


def test_zero_padded_shortcut_by_concatenation(prove: Prove) -> None:
    """``cat([h, 0 h])``: both halves have as many channels as ``h``, so that they are tied."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        return net.head(torch.cat([h, torch.zeros_like(h)], 1) + net.long(h))

    prove(forward, {"stem.0": "4 exact"}, stem=normed(3, 4), long=conv(4, 8), head=conv(8, 2))


def test_channels_padded_with_zeros_and_read(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(F.pad(net.stem(x), (1, 1, 1, 1, 0, 3))),
        {"stem.0": "4 exact"},
        stem=normed(3, 4),
        head=conv(7, 2),
    )


def test_stochastic_depth_and_dropout(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        h = h + net.depth(net.second(F.dropout(net.first(h), 0.2, net.training)))
        return net.head(net.drop(h))

    prove(
        forward,
        {"stem.0": "4 exact", "first.0": "6 exact"},
        stem=normed(3, 4),
        first=normed(4, 6),
        second=conv(6, 4),
        depth=StochasticDepth(0.2, "row"),
        drop=nn.Dropout2d(0.1),
        head=conv(4, 2),
    )


def test_layer_scale(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        return net.head(torch.addcmul(h, net.first(h), net.scale))

    prove(
        forward,
        {"stem.0": "4 exact"},
        stem=normed(3, 4),
        first=conv(4, 4),
        scale=nn.Parameter(torch.rand(4, 1, 1)),
        head=conv(4, 2),
    )


def test_interpolated_shortcut_by_lerp(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        return net.head(torch.lerp(h, net.first(h).clamp(-1, 1), net.weight.sigmoid()))

    prove(
        forward,
        {"stem.0": "4 exact"},
        stem=normed(3, 4),
        first=conv(4, 4),
        weight=nn.Parameter(torch.zeros(4, 1, 1)),
        head=conv(4, 2),
    )


def test_upsampled_and_added(prove: Prove) -> None:
    """A feature pyramid's top-down path: bilinear, nearest and transposed, all in one space."""

    def forward(net: Any, x: Tensor) -> Tensor:
        fine = net.stem(x)
        coarse = net.down(fine)
        up = F.interpolate(net.lateral(coarse), scale_factor=2.0, mode="bilinear") + net.up(coarse)
        return net.head(fine + up + nn.functional.interpolate(net.lateral(coarse), size=fine.shape[2:]))

    prove(
        forward,
        {"stem.0": "4 exact", "down.0": "6 exact"},
        stem=normed(3, 4),
        down=normed(4, 6, stride=2),
        lateral=conv(6, 4, 1),
        up=nn.ConvTranspose2d(6, 4, 2, stride=2),
        head=conv(4, 2),
    )


def test_selected_by_a_mask(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        return net.head(torch.where(h > 0, h, net.first(h)).masked_fill(h > 2, 0.5))

    prove(forward, {"stem.0": "4 exact"}, stem=normed(3, 4), first=conv(4, 4), head=conv(4, 2))
