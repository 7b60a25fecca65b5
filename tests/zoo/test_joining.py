"""Concatenations: a channel keeps its identity wherever it is joined, twice or not, and cut again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Prove = Callable[..., Any]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_concatenation(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.norm(torch.cat([net.one(x), net.two(x)], 1)).relu())

    prove(
        forward,
        {"one": "4 exact", "two": "3 exact"},
        onnx=True,
        one=conv(3, 4, 3),
        two=conv(3, 3),
        norm=nn.BatchNorm2d(7),
        head=conv(7, 2),
    )


def test_the_same_tensor_twice(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        return net.head(net.norm(torch.cat([h, h.relu(), h], 1)))

    prove(forward, {"one": "4 exact"}, one=conv(3, 4), norm=nn.BatchNorm2d(12), head=conv(12, 2))


def test_dense_reuse(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.stem(x)
        for layer in (net.a, net.b, net.c):
            h = torch.cat([h, layer(h)], 1)
        return net.head(h)

    def layer(width: int) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), conv(width, 2, 3))

    prove(
        forward,
        {"stem": "4 exact", "a.2": "2 exact", "b.2": "2 exact", "c.2": "2 exact"},
        stem=conv(3, 4),
        a=layer(4),
        b=layer(6),
        c=layer(8),
        head=conv(10, 2),
    )


def test_with_the_model_input(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(torch.cat([x, net.one(x), x], 1)),
        {"one": "4 exact"},
        one=conv(3, 4),
        head=conv(10, 2),
    )


def test_with_coordinates(prove: Prove) -> None:
    """CoordConv: two channels come from a buffer, and stay."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        return net.head(torch.cat([h, net.grid.expand(h.shape[0], -1, -1, -1)], 1))

    prove(forward, {"one": "4 exact"}, one=conv(3, 4), grid=torch.rand(1, 2, 8, 8), head=conv(6, 2))


def test_cut_at_other_places(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        first, second, third = torch.split(torch.cat([net.one(x), net.two(x)], 1), [2, 3, 2], dim=1)
        return net.a(first) + net.b(second) + net.c(third)

    prove(
        forward,
        {"one": "4 exact", "two": "3 exact"},
        one=conv(3, 4),
        two=conv(3, 3),
        a=conv(2, 2),
        b=conv(3, 2),
        c=conv(2, 2),
    )


def test_cut_into_chunks_that_are_added(prove: Prove) -> None:
    """Chunk 1 is ``one`` and two channels of ``two``, chunk 2 the other five of these."""

    def forward(net: Any, x: Tensor) -> Tensor:
        left, right = torch.cat([net.one(x), net.two(x)], 1).chunk(2, 1)
        return net.head(left * right)

    prove(
        forward,
        {"one": "3 exact", "two": "2 exact"},
        one=conv(3, 3),
        two=conv(3, 7),
        head=conv(5, 2),
    )


def test_flattened_branches(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        left, right = net.one(x).flatten(1), net.two(x).mean((2, 3))
        return net.head(torch.cat([left, right], dim=1))

    prove(
        forward,
        {"one": "2 exact", "two": "3 exact"},
        onnx=True,
        one=conv(3, 2, stride=4),
        two=conv(3, 3),
        head=nn.Linear(2 * 4 + 3, 2),
    )


def test_stacked_and_summed(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.stack([net.one(x), net.two(x)], 2).amax(2))

    prove(forward, {"one": "4 exact"}, one=conv(3, 4), two=conv(3, 4), head=conv(4, 2))


def test_repeated(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        return net.a(h.repeat(1, 2, 1, 1)) + net.b(torch.tile(h, (1, 3, 1, 1))) + net.c(h.tile(1, 2, 1, 1))

    prove(forward, {"one": "4 exact"}, one=conv(3, 4), a=conv(8, 2), b=conv(12, 2), c=conv(8, 2))


def test_repeated_next_to_itself(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        return net.a(h.repeat_interleave(2, 1)) + net.b(torch.repeat_interleave(h, 2, dim=1))

    prove(forward, {"one": "4 exact"}, one=conv(3, 4), a=conv(8, 2), b=conv(8, 2))
