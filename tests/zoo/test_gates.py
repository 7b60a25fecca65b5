"""Gates and attention: what multiplies a channel belongs to it, whatever layout it was computed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

Prove = Callable[..., Any]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_squeeze_excite_by_convolutions(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        gate = net.excite(net.squeeze(h.mean((2, 3), keepdim=True)).relu())
        return net.head(h * F.hardsigmoid(gate))

    prove(
        forward,
        {"one": "4 exact", "squeeze": "2 exact"},
        onnx=True,
        one=conv(3, 4, 3),
        squeeze=conv(4, 2),
        excite=conv(2, 4),
        head=conv(4, 2),
    )


def test_squeeze_excite_by_linear_layers_and_a_literal_view(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        gate = net.fc(net.pool(h).view(x.size(0), 4)).view(x.size(0), 4, 1, 1)
        return net.head(h * gate.expand_as(h) + h * gate.expand(-1, 4, 8, 8))

    prove(
        forward,
        {"one": "4 exact", "fc.0": "2 exact"},
        one=conv(3, 4, 3),
        pool=nn.AdaptiveAvgPool2d(1),
        fc=nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4), nn.Sigmoid()),
        head=conv(4, 2),
    )


def test_squeeze_excite_of_torchvision(prove: Prove) -> None:
    model = nn.Sequential(
        Conv2dNormActivation(3, 4, 3, activation_layer=nn.Hardswish),
        SqueezeExcitation(4, 2, scale_activation=nn.Hardsigmoid),
        conv(4, 2),
    )
    prove(model, {"0.0": "4 exact", "1.fc1": "2 exact"})


def test_spatial_gate(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.one(x) * net.gate(x).sigmoid()),
        {"one": "4 exact", "gate": "1 frozen:size-1-broadcast"},
        one=conv(3, 4),
        gate=conv(3, 1, 3),
        head=conv(4, 2),
    )


def test_gate_by_the_mean_of_all_channels(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        return net.head(h * h.mean(1, keepdim=True).sigmoid())

    prove(forward, {"one": "4 prune-only:channel-reduction"}, one=conv(3, 4), head=conv(4, 2))


def test_gate_by_statistics_over_all_channels(prove: Prove) -> None:
    """CBAM's spatial half: mean and maximum over the channels become two channels that stay."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        both = torch.cat([h.mean(1, keepdim=True), torch.max(h, 1, keepdim=True)[0]], 1)
        return net.head(h * net.gate(both).sigmoid())

    prove(
        forward,
        {"one": "4 prune-only:channel-reduction", "gate": "1 frozen:size-1-broadcast"},
        one=conv(3, 4),
        gate=conv(2, 1, 3),
        head=conv(4, 2),
    )


def test_selective_kernels(prove: Prove) -> None:
    """A softmax over branches mixes no channels."""

    def forward(net: Any, x: Tensor) -> Tensor:
        one, two = net.one(x), net.two(x)
        pooled = (one + two).mean((2, 3))
        weights = torch.stack([net.fc1(pooled), net.fc2(pooled)], 0).softmax(0)
        return net.head(one * weights[0][:, :, None, None] + two * weights[1][:, :, None, None])

    prove(
        forward,
        {"one": "4 exact"},
        one=conv(3, 4),
        two=conv(3, 4, 3),
        fc1=nn.Linear(4, 4),
        fc2=nn.Linear(4, 4),
        head=conv(4, 2),
    )


def test_split_attention(prove: Prove) -> None:
    """ResNeSt: a softmax over the two splits of each channel, laid out by a view."""

    def forward(net: Any, x: Tensor) -> Tensor:
        n = x.size(0)
        parts = net.one(x).view(n, 2, 3, 8, 8)
        weights = net.fc(parts.sum(1).mean((2, 3))).view(n, 2, 3).softmax(1)
        return net.head((parts * weights.view(n, 2, 3, 1, 1)).sum(1))

    prove(forward, {"one": "3 exact"}, one=conv(3, 6), fc=nn.Linear(3, 6), head=conv(3, 2))


def test_global_response_norm(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x)
        energy = torch.linalg.vector_norm(h, dim=(2, 3), keepdim=True)
        return net.head(net.gamma * (h * energy / (energy.mean(1, keepdim=True) + 1e-6)) + net.beta + h)

    prove(
        forward,
        {"one": "4 prune-only:channel-reduction"},
        one=conv(3, 4),
        gamma=nn.Parameter(torch.rand(1, 4, 1, 1)),
        beta=nn.Parameter(torch.rand(1, 4, 1, 1)),
        head=conv(4, 2),
    )


def test_softmax_over_channels(prove: Prove) -> None:
    prove(
        lambda net, x: (
            net.head(net.soft(net.one(x)))
            + net.tail(net.two(x).flatten(2).softmax(2).mean(2)[:, :, None, None])
        ),
        {"one": "4 prune-only:channel-softmax", "two": "3 exact"},
        one=conv(3, 4),
        two=conv(3, 3),
        soft=nn.Softmax2d(),
        head=conv(4, 2),
        tail=conv(3, 2),
    )


def test_per_channel_buffer(prove: Prove) -> None:
    prove(
        lambda net, x: net.head((net.one(x) - net.mean) * net.scale[None, :, None, None]),
        {"one": "4 exact"},
        onnx=True,
        one=conv(3, 4),
        mean=torch.rand(1, 4, 1, 1),
        scale=torch.rand(4),
        head=conv(4, 2),
    )


def test_position_embedding_over_the_image(prove: Prove) -> None:
    prove(
        lambda net, x: net.head((net.one(x) + net.position).flatten(1)),
        {"one": "3 exact"},
        one=conv(3, 3, stride=2),
        position=nn.Parameter(torch.rand(1, 3, 4, 4)),
        head=nn.Linear(48, 2),
    )


def test_gates_without_a_rule_of_their_own(prove: Prove) -> None:
    """PReLU for each channel, one PReLU for all, cumulative sums over space, a sum of squares."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.each(net.one(x)) + net.all(net.one(x))
        return net.head(h.cumsum(3) * h.square().sum((2, 3), keepdim=True).rsqrt())

    prove(forward, {"one": "4 exact"}, one=conv(3, 4), each=nn.PReLU(4), all=nn.PReLU(), head=conv(4, 2))


def test_sum_over_channels_before(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.one(x).cumsum(1)),
        {"one": "4 prune-only:channel-scan"},
        one=conv(3, 4),
        head=conv(4, 2),
    )


def test_gram_matrix(prove: Prove) -> None:
    """Every channel meets every other: twice as many channels are four times as many products."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x).flatten(2)
        return net.head((h @ h.transpose(1, 2)).flatten(1))

    prove(forward, {"one": "4 frozen:merged-dimensions"}, one=conv(3, 4), head=nn.Linear(16, 2))


def test_bilinear_layer(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.one(x).mean((2, 3))
        return net.head(net.both(h, net.two(x).mean((2, 3))))

    prove(
        forward,
        {"one": "3 exact", "two": "4 exact", "both": "5 exact"},
        one=conv(3, 3),
        two=conv(3, 4),
        both=nn.Bilinear(3, 4, 5),
        head=nn.Linear(5, 2),
    )
