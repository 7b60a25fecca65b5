"""Views, flattenings, products: the same channels in other places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Permute

Prove = Callable[..., Any]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_literal_view_and_reshape(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x).view(2, 4, 64)
        h = torch.reshape(h, (2, 4, 8, 8)).reshape(-1, 4, 16, 4)
        return net.head(h)

    prove(forward, {"one": "4 exact"}, one=conv(3, 4), head=conv(4, 2))


def test_flattened_channels_first(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        return net.a(h.view(-1, 4 * 16)) + net.b(torch.flatten(h, 1)) + net.c(h.reshape(h.shape[0], -1))

    prove(
        forward,
        {"one": "4 exact"},
        onnx=True,
        one=conv(3, 4, stride=2),
        a=nn.Linear(64, 2),
        b=nn.Linear(64, 2),
        c=nn.Linear(64, 2),
    )


def test_flattened_channels_last(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x).permute(0, 2, 3, 1)
        return net.a(h.flatten(1)) + net.b(h.contiguous().view(-1, 4 * 4 * 4))

    prove(forward, {"one": "4 exact"}, one=conv(3, 4, stride=2), a=nn.Linear(64, 2), b=nn.Linear(64, 2))


def test_flatten_and_unflatten(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.unflatten(net.flatten(net.one(x)))
        return net.head(h.flatten(1, 2).unflatten(1, (4, 4)).flatten(2))

    prove(
        forward,
        {"one": "4 exact"},
        one=conv(3, 4, stride=2),
        flatten=nn.Flatten(1, 2),
        unflatten=nn.Unflatten(1, (4, 4)),
        head=nn.Conv1d(4, 2, 1),
    )


def test_generator(prove: Prove) -> None:
    """DCGAN: a vector becomes an image, its channels the linear layer's rows in blocks of sixteen."""
    model = nn.Sequential(
        nn.Linear(5, 4 * 16), nn.Unflatten(1, (4, 4, 4)), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2)
    )
    prove(model, {"0": "4 exact"}, 2, 5)


def test_torchvision_permute(prove: Prove) -> None:
    model = nn.Sequential(conv(3, 4), Permute([0, 2, 3, 1]), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))
    prove(model, {"0": "4 exact", "2": "6 exact"}, onnx=True)


def test_moved_axes(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x).movedim(1, -1).swapaxes(1, 2).transpose(-1, 1).moveaxis(1, 1)
        return net.head(torch.swapdims(h, 2, 3).unsqueeze(2).squeeze(2))

    prove(forward, {"one": "4 exact"}, one=conv(3, 4), head=conv(4, 2))


def test_product_with_a_parameter(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = torch.matmul(net.one(x).permute(0, 2, 3, 1), net.right)
        return torch.matmul(net.left, h.flatten(1, 2).transpose(1, 2))

    prove(
        forward,
        {"one": "4 exact", "right": "5 exact"},
        onnx=True,
        one=conv(3, 4),
        right=nn.Parameter(torch.randn(4, 5)),
        left=nn.Parameter(torch.randn(2, 5)),
    )


def test_einsum(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = torch.einsum("bchw,oc->bohw", net.one(x), net.kernel).relu()
        return net.head(torch.einsum("bchw,c->bchw", h, net.scale))

    prove(
        forward,
        {"one": "4 exact", "kernel": "5 exact"},
        one=conv(3, 4),
        kernel=nn.Parameter(torch.randn(5, 4)),
        scale=nn.Parameter(torch.rand(5)),
        head=conv(5, 2),
    )


def test_token_mixing(prove: Prove) -> None:
    """An MLP-Mixer block: a product over tokens passes the channels, and the other way round."""

    def forward(net: Any, x: Tensor) -> Tensor:
        tokens = net.one(x).flatten(2)
        tokens = tokens + net.back(F.gelu(net.over(tokens)))
        return net.head((net.down(F.gelu(net.up(tokens.transpose(1, 2))))).mean(1))

    prove(
        forward,
        {
            "one": "4 exact",
            "over": "6 exact",
            "back": "16 frozen:meets-constant",
            "up": "5 exact",
            "down": "3 exact",
        },
        one=conv(3, 4, stride=2),
        over=nn.Linear(16, 6),
        back=nn.Linear(6, 16),
        up=nn.Linear(4, 5),
        down=nn.Linear(5, 3),
        head=nn.Linear(3, 2),
    )
