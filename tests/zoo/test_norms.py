"""Normalisations: each channel by itself is exact, channels together allow pruning alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Prove = Callable[..., Any]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_group_norm(prove: Prove) -> None:
    """Pairs, one from each norm group; and with one group for each channel every channel by itself."""
    prove(
        lambda net, x: net.head(net.each(net.two(net.norm(net.one(x))))),
        {"one": "3 prune-only:channel-norm", "two": "4 exact"},
        onnx=True,
        one=conv(3, 6),
        norm=nn.GroupNorm(2, 6),
        two=conv(6, 4),
        each=nn.GroupNorm(4, 4),
        head=conv(4, 2),
    )


def test_functional_group_norm(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.two(F.group_norm(net.one(x), 2, net.weight, net.bias))
        return net.head(F.group_norm(h, 4))

    prove(
        forward,
        {"one": "3 prune-only:channel-norm", "two": "4 exact"},
        one=conv(3, 6),
        weight=nn.Parameter(torch.rand(6)),
        bias=nn.Parameter(torch.rand(6)),
        two=conv(6, 4),
        head=conv(4, 2),
    )


def test_group_norm_without_affine_map(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.norm(net.two(net.each(net.one(x))))),
        {"one": "4 exact", "two": "3 prune-only:channel-norm"},
        one=conv(3, 4),
        each=nn.GroupNorm(4, 4, affine=False),
        two=conv(4, 6),
        norm=nn.GroupNorm(2, 6, affine=False),
        head=conv(6, 2),
    )


def test_instance_norm(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = F.instance_norm(net.plain(net.two(net.norm(net.one(x)))))
        return net.head(F.instance_norm(h, weight=net.weight, bias=net.bias))

    prove(
        forward,
        {"one": "4 exact", "two": "3 exact"},
        one=conv(3, 4, 3),
        norm=nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        two=conv(4, 3, 3),
        plain=nn.InstanceNorm2d(3),
        weight=nn.Parameter(torch.rand(3)),
        bias=nn.Parameter(torch.rand(3)),
        head=conv(3, 2),
    )


def test_layer_norm_of_tokens(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        tokens = net.norm(net.one(x).flatten(2).transpose(1, 2))
        return net.head(F.gelu(net.up(tokens)).mean(1))

    prove(
        forward,
        {"one": "4 prune-only:channel-norm", "up": "6 exact"},
        onnx=True,
        one=conv(3, 4, stride=2),
        norm=nn.LayerNorm(4),
        up=nn.Linear(4, 6),
        head=nn.Linear(6, 2),
    )


def test_functional_norms_with_literal_shapes(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = F.layer_norm(net.one(x).permute(0, 2, 3, 1), (4,), net.weight)
        h = F.rms_norm(net.two(h), (5,))
        h = F.rms_norm(net.three(h), [3], weight=net.scale)
        return net.head(F.layer_norm(h, [3]))

    prove(
        forward,
        {
            "one": "4 prune-only:channel-norm",
            "two": "5 prune-only:channel-reduction",
            "three": "3 prune-only:channel-reduction",
        },
        one=conv(3, 4),
        weight=nn.Parameter(torch.rand(4)),
        two=nn.Linear(4, 5),
        three=nn.Linear(5, 3),
        scale=nn.Parameter(torch.rand(3)),
        head=nn.Linear(3, 2),
    )


def test_norms_without_affine_map(prove: Prove) -> None:
    """One module, called on two widths that it therefore ties, and once over space alone."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.norm(net.two(net.norm(net.one(x.mean((2, 3))))))
        return net.head(net.rms(net.three(h))) + net.tail(net.area(net.four(x)).mean((2, 3)))

    prove(
        forward,
        {
            "one": "4 prune-only:channel-norm",
            "three": "5 prune-only:channel-reduction",
            "four": "3 exact",
        },
        one=nn.Linear(3, 4),
        norm=nn.LayerNorm(4, elementwise_affine=False),
        two=nn.Linear(4, 4),
        three=nn.Linear(4, 5),
        rms=nn.RMSNorm(5, elementwise_affine=False),
        four=conv(3, 3),
        area=nn.LayerNorm((8, 8)),
        head=nn.Linear(5, 2),
        tail=nn.Linear(3, 2),
    )


def test_norm_over_channels_and_space(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.norm(net.one(x))),
        {"one": "4 prune-only:channel-norm"},
        one=conv(3, 4),
        norm=nn.LayerNorm((4, 8, 8)),
        head=conv(4, 2),
    )


def test_functional_batch_norm(prove: Prove) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = F.batch_norm(net.one(x), net.mean, net.var, net.weight, net.bias, training=net.training)
        return net.head(net.plain(h))

    prove(
        forward,
        {"one": "4 exact"},
        one=conv(3, 4),
        mean=torch.zeros(4),
        var=torch.ones(4),
        weight=nn.Parameter(torch.rand(4)),
        bias=nn.Parameter(torch.rand(4)),
        plain=nn.BatchNorm2d(4, affine=False),
        head=conv(4, 2),
    )


def test_local_response_norm(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(net.norm(net.one(x))),
        {"one": "4 frozen:window-over-channels"},
        one=conv(3, 4),
        norm=nn.LocalResponseNorm(3),
        head=conv(4, 2),
    )


def test_unit_vectors(prove: Prove) -> None:
    prove(
        lambda net, x: net.head(F.normalize(net.one(x), dim=1)) + net.tail(F.normalize(net.two(x), dim=3)),
        {"one": "4 prune-only:channel-reduction", "two": "3 exact"},
        one=conv(3, 4),
        two=conv(3, 3),
        head=conv(4, 2),
        tail=conv(3, 2),
    )


def test_as_many_norm_groups_as_channels_are_read(prove: Prove) -> None:
    """Where each channel is a norm group its number follows; as a share of theirs it would regroup them."""

    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.two(F.group_norm(net.one(x), net.one(x).size(1)))
        h = net.three(F.group_norm(h, num_groups=h.shape[1]))
        return net.head(F.group_norm(h, h.size(1) // 3))

    prove(
        forward,
        {"one": "4 exact", "two": "4 exact", "three": "3 frozen:regrouped"},
        onnx=True,
        one=conv(3, 4),
        two=conv(4, 4),
        three=conv(4, 9),
        head=conv(9, 2),
    )
