"""Programs: shared and frozen parameters, detached paths, several inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Prove = Callable[..., Any]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_shared_module_called_twice(prove: Prove) -> None:
    """What it reads it also makes: rows and columns are split together, the columns halved."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        return net.head(net.two(net.two(h).relu()))

    prove(forward, {"stem": "4 exact"}, stem=conv(3, 4), two=conv(4, 4, 3), head=conv(4, 2))


def test_shared_module_on_two_inputs(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        left, right = net.stem(x), net.stem(x.flip(3))
        return net.head(left * right)

    prove(forward, {"stem": "4 exact"}, onnx=True, stem=conv(3, 4), head=conv(4, 2))


def test_shared_head(prove: Prove) -> None:
    """Both inputs of the head have its columns' channels: one space of two producers."""

    def forward(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = net.fine(x)
        return net.head(net.mid(fine)), net.head(net.mid(net.coarse(fine)))

    prove(
        forward,
        {"fine": "4 exact", "mid": "5 exact"},
        fine=conv(3, 4),
        coarse=conv(4, 4, 3, stride=2),
        mid=conv(4, 5),
        head=conv(5, 2),
    )


def test_tied_parameter(prove: Prove) -> None:
    """An autoencoder whose decoder is its encoder transposed: rows here are columns there."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = F.linear(x.flatten(1), net.kernel).relu()
        return F.linear(h, net.kernel.t())

    prove(
        forward,
        {"kernel": "4 frozen:tied-parameter", "kernel#2": "3 frozen:model-input"},
        kernel=nn.Parameter(torch.randn(4, 192)),
    )


def test_frozen_parameters_and_detached_paths(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        return net.head(h + net.side(h.detach()))

    stem = conv(3, 4)
    stem.requires_grad_(False)
    prove(forward, {"stem": "4 exact"}, stem=stem, side=conv(4, 4), head=conv(4, 2))


def test_several_outputs(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> dict[str, Any]:
        h = net.stem(x)
        return {"classes": net.head(net.mid(h)), "features": [h], "auxiliary": (net.tail(h),)}

    prove(
        forward,
        {"mid": "5 exact"},
        stem=conv(3, 4),
        mid=conv(4, 5),
        head=conv(5, 2),
        tail=conv(4, 2),
    )


def test_in_place_operators(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        h += net.side(h)
        h.relu_().mul_(net.scale)
        return net.head(F.relu(h, inplace=True))

    prove(
        forward,
        {"stem": "4 exact"},
        stem=conv(3, 4),
        side=conv(4, 4),
        scale=nn.Parameter(torch.rand(4, 1, 1)),
        head=conv(4, 2),
    )


def test_constants_made_on_the_way(prove: Prove) -> None:
    """Zeros like a value have its channels; a tensor of a computed extent has none."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        h = torch.maximum(h, torch.zeros_like(h)) + torch.full_like(h, 0.5)
        return net.head(h) + net.tail(net.side(x) + torch.arange(3).view(3, 1, 1))

    prove(
        forward,
        {"stem": "4 exact", "side": "3 exact"},
        stem=conv(3, 4),
        side=conv(3, 3),
        head=conv(4, 2),
        tail=conv(3, 2),
    )


def test_channel_count_used_as_a_number(prove: Prove) -> None:
    """In arithmetic the number is the model's, and is written down; what it counts is not of this kind."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        return net.head((h * h.shape[1] ** -0.5).clamp(max=h.size(1)) / (h.size(1) // 2))

    prove(forward, {"stem": "4 exact"}, onnx=True, stem=conv(3, 4), head=conv(4, 2))


def test_channel_count_that_fills_or_is_one_of_many(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h, k = net.stem(x), net.side(x)
        return net.head(h / h[0].numel()) + net.tail(k + torch.full_like(k, k.size(1)))

    prove(
        forward,
        {"stem": "4 frozen:size-as-value", "side": "3 frozen:size-as-value"},
        stem=conv(3, 4),
        side=conv(3, 3),
        head=conv(4, 2),
        tail=conv(3, 2),
    )


def test_pooled_in_every_way(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        h = (
            F.max_pool2d(h, 2)
            + F.avg_pool2d(h, 2)
            + F.adaptive_max_pool2d(h, 4)
            + F.lp_pool2d(h.abs(), 2.0, 2)
        )
        pooled = F.interpolate(h, scale_factor=2, mode="bicubic") + F.pad(h, (2, 2, 2, 2), mode="reflect")
        return net.head(F.upsample(pooled, scale_factor=2))

    prove(forward, {"stem": "4 exact"}, stem=conv(3, 4), head=conv(4, 2))
