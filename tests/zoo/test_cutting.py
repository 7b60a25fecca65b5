"""Chunks, splits, slices and selections: literals follow their channels; equal parts stay equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Prove = Callable[..., Any]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_chunks_into_separate_convolutions(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        left, right = net.one(x).chunk(2, dim=1)
        return net.a(left) + net.b(right)

    prove(forward, {"one": "3 exact"}, onnx=True, one=conv(3, 6), a=conv(3, 2), b=conv(3, 2))


def test_chunks_of_unequal_size(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        left, right = net.one(x).chunk(2, dim=1)
        return net.a(left) + net.b(right)

    prove(forward, {"one": "7 exact"}, onnx=True, one=conv(3, 7), a=conv(4, 2), b=conv(3, 2))


def test_tensor_split(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        left, right = torch.tensor_split(net.one(x), 2, dim=1)
        first, second, third = left.tensor_split((1, 3), 1)
        return net.a(first) + net.b(second) + net.c(third) + net.d(right)

    prove(
        forward,
        {"one": "7 exact"},
        one=conv(3, 7),
        a=conv(1, 2),
        b=conv(2, 2),
        c=conv(1, 2),
        d=conv(3, 2),
    )


def test_split_by_one_size_and_by_many(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        left, middle, right = net.one(x).split(3, 1)
        return net.a(left) + net.b(torch.cat(middle.split([1, 2], dim=1), 1)) + net.c(right)

    prove(forward, {"one": "8 exact"}, one=conv(3, 8), a=conv(3, 2), b=conv(3, 2), c=conv(2, 2))


def test_gated_linear_unit(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        value, gate = net.one(x).chunk(2, 1)
        h = F.glu(net.two(value * torch.sigmoid(gate)), dim=1)
        return net.head(net.glu(net.three(h)))

    prove(
        forward,
        {"one": "3 exact", "two": "4 exact", "three": "2 exact"},
        one=conv(3, 6),
        two=conv(3, 8),
        three=conv(4, 4),
        glu=nn.GLU(1),
        head=conv(2, 2),
    )


def test_halves_by_computed_bounds(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        half = h.shape[1] // 2
        return net.head(h[:, :half] * h[:, half:])

    prove(forward, {"one": "3 exact"}, one=conv(3, 6), head=conv(3, 2))


def test_unbound_parts_of_a_view(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        query, key = net.one(x).view(x.size(0), 2, 3, 8, 8).unbind(1)
        return net.head(query * key.sigmoid())

    prove(forward, {"one": "3 exact"}, one=conv(3, 6), head=conv(3, 2))


def test_unbound_channels_are_single(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.stack(net.one(x).unbind(1), 1))

    prove(forward, {"one": "4 frozen:single-channel"}, one=conv(3, 4), head=conv(4, 2))


def test_slices(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        return (
            net.a(h[:, 1:4]) + net.b(h[:, -2:]) + net.c(torch.narrow(h, 1, 2, 3)) + net.d(h.narrow(1, 0, 1))
        )

    prove(forward, {"one": "6 exact"}, one=conv(3, 6), a=conv(3, 2), b=conv(2, 2), c=conv(3, 2), d=conv(1, 2))


def test_slices_with_a_step(prove: Prove) -> None:
    """Even and odd channels go in pairs."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        return net.a(h[:, ::2]) + net.b(h[:, 1::2])

    prove(forward, {"one": "3 exact"}, one=conv(3, 6), a=conv(3, 2), b=conv(3, 2))


def test_slices_with_a_step_that_leaves_a_rest(prove: Prove) -> None:
    """The seventh channel has no partner: doubled, it would hold a second place."""
    prove(
        lambda net, x: net.head(net.one(x)[:, ::2]),
        {"one": "3 exact", "one#2": "1 frozen:strided-slice"},
        one=conv(3, 7),
        head=conv(4, 2),
    )


def test_space_to_depth_by_strided_slices(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        parts = [h[..., ::2, ::2], h[..., 1::2, ::2], h[..., ::2, 1::2], h[..., 1::2, 1::2]]
        return net.head(torch.cat(parts, 1))

    prove(forward, {"one": "3 exact"}, one=conv(3, 3), head=conv(12, 2))


def test_one_channel_taken_out(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.one(x)) * net.gate(x)[:, 1].unsqueeze(1),
        {"one": "3 exact", "gate": "2 exact, 1 frozen:single-channel"},
        one=conv(3, 3),
        gate=conv(3, 3),
        head=conv(3, 2),
    )


def test_flipped(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.flip(net.one(x), [1, 3]))

    prove(forward, {"one": "4 exact"}, one=conv(3, 4), head=conv(4, 2))


def test_added_to_itself_flipped(prove: Prove) -> None:
    """Pairs from outside to inside; the middle channel has itself for a partner, its halves would not."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        return net.head(h + h.flip(1))

    prove(
        forward,
        {"one": "2 exact", "one#2": "1 frozen:reversed"},
        one=conv(3, 5),
        head=conv(5, 2),
    )


def test_rolled(prove: Prove) -> None:
    """By one position: the last channel becomes the first; its halves would be parted."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.roll(net.one(x), 1, 1)) + net.tail(net.two(x).roll(shifts=2, dims=3))

    prove(
        forward,
        {"one": "4 exact", "two": "4 exact"},
        one=conv(3, 4),
        two=conv(3, 4),
        head=conv(4, 2),
        tail=conv(4, 2),
    )


def test_selected_by_an_index_buffer(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.index_select(net.one(x), 1, net.order))

    prove(
        forward,
        {"one": "4 exact"},
        onnx=True,
        one=conv(3, 4),
        order=torch.tensor([2, 0, 3, 1]),
        head=conv(4, 2),
    )


def test_selected_by_an_index_list(prove: Prove) -> None:
    prove(
        lambda net, x: net.a(net.one(x)[:, [2, 0, 3]]) + net.b(net.one(x)[:, net.order]),
        {"one": "4 exact"},
        one=conv(3, 4),
        order=torch.tensor([1, 1, 0]),
        a=conv(3, 2),
        b=conv(3, 2),
    )


def test_maxout(prove: Prove) -> None:
    """Two channels that compete for one place go together."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x).view(x.size(0), 3, 2, 8, 8).amax(2)
        return net.head(net.two(h).view(-1, 2, 3, 8, 8).max(dim=1)[0])

    prove(forward, {"one": "3 exact", "two": "3 exact"}, one=conv(3, 6), two=conv(3, 6), head=conv(3, 2))
