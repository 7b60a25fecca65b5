"""Shuffles: what changes places together stays together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Prove = Callable[..., Any]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_channel_shuffle_by_view(prove: Prove) -> None:
    """Channels 4a + j go to 2j + a: the shuffle ties j in both halves, the grouped head j and j + 2."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        n, c, height, width = h.shape
        return net.head(h.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width))

    prove(forward, {"one": "2 exact"}, onnx=True, one=conv(3, 8), head=conv(8, 2, groups=2))


def test_channel_shuffle_by_literal_view(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x).reshape(-1, 2, 3, 8, 8).permute(0, 2, 1, 3, 4).flatten(1, 2)
        return net.head(h)

    prove(forward, {"one": "3 exact"}, one=conv(3, 6), head=conv(6, 2))


def test_channel_shuffle_by_module(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.shuffle(net.one(x))),
        {"one": "3 exact"},
        one=conv(3, 6),
        shuffle=nn.ChannelShuffle(2),
        head=conv(6, 2),
    )


def test_channel_shuffle_by_function(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.two(torch.channel_shuffle(net.one(x), 2))),
        {"one": "2 exact", "two": "4 exact"},
        one=conv(3, 8),
        two=conv(8, 8, groups=2),
        head=conv(8, 2),
    )


def test_shuffle_unit(prove: Prove) -> None:
    """ShuffleNetV2's: half passes, half is processed, both are shuffled together."""

    def forward(net: Any, x: Tensor) -> Tensor:
        left, right = net.stem(x).chunk(2, dim=1)
        h = torch.cat((left, net.branch(right)), dim=1)
        n, c, height, width = h.size()
        h = h.view(n, 2, c // 2, height, width).transpose(1, 2).contiguous().view(n, -1, height, width)
        return net.head(h)

    branch = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4, 3, groups=4), conv(4, 4))
    prove(
        forward, {"stem": "4 exact", "branch.0": "4 exact"}, stem=conv(3, 8), branch=branch, head=conv(8, 2)
    )


def test_pixel_shuffle_and_unshuffle(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.up(net.one(x))
        return net.head(F.pixel_unshuffle(net.two(h), 2)) + net.tail(net.down(net.two(h)))

    prove(
        forward,
        {"one": "2 exact", "two": "3 exact"},
        onnx=True,
        one=conv(3, 8),
        up=nn.PixelShuffle(2),
        two=conv(2, 3),
        down=nn.PixelUnshuffle(2),
        head=conv(12, 2),
        tail=conv(12, 2),
    )


def test_pixel_shuffle_by_hand(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x).view(-1, 3, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3)
        return net.head(h.reshape(-1, 3, 16, 16))

    prove(forward, {"one": "3 exact"}, one=conv(3, 12), head=conv(3, 2))


def test_pixel_shuffle_by_a_transposed_kernel(prove: Prove) -> None:
    """DUC: the reshape moves space into channels the other way round."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x).view(x.size(0), 3, 4, 2, 4, 2).permute(0, 3, 5, 1, 2, 4)
        return net.head(h.reshape(x.size(0), 12, 4, 4))

    prove(forward, {"one": "3 exact"}, one=conv(3, 3), head=conv(12, 2))
