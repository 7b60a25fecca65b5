"""Suggestions are true: a model that is changed as a refusal suggests is allowed what it was refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.tracing import trace
from morphir.ir.graph import Graph
from morphir.runtime.oracle.oracle import check_graph

Forward = Callable[["Net", Tensor], object]


class Net(nn.Module):
    """Parts to make small models of."""

    def __init__(self, body: Forward) -> None:
        super().__init__()
        self.body = body
        self.conv = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 4, 1)
        self.to_three = nn.Conv2d(4, 3, 1)
        self.three_to_three = nn.Conv2d(3, 3, 1)
        self.layer_norm = nn.LayerNorm(4)
        self.batch_norm = nn.BatchNorm1d(4)
        self.sum = nn.Linear(4, 1)
        self.encode = nn.Linear(4, 5)
        self.decode = nn.Linear(5, 4)
        self.head = nn.Linear(4, 5)
        self.head_of_three = nn.Linear(3, 5)
        self.head_of_one = nn.Linear(1, 5)
        self.scale = nn.Parameter(torch.randn(4))
        self.root = 4**-0.5

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)

    def features(self, x: Tensor) -> Tensor:
        """Four channels, [N, 4]."""
        return self.conv(x).mean((2, 3))


def similarities(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return flat.transpose(1, 2) @ flat


def masked(x: Tensor) -> Tensor:
    return x * torch.linspace(0, 1, 4, device=x.device)


PAIRS: dict[str, tuple[str, Forward, Forward]] = {
    "model-output": (
        "conv",
        lambda net, x: net.features(x),
        lambda net, x: net.head(net.features(x)),
    ),
    "model-input": (
        "to_three",
        lambda net, x: net.head_of_three((net.to_three(net.conv(x)) * x).mean((2, 3))),
        lambda net, x: net.head_of_three((net.to_three(net.conv(x)) * net.three_to_three(x)).mean((2, 3))),
    ),
    "channel-norm": (
        "conv",
        lambda net, x: net.head(net.layer_norm(net.features(x))),
        lambda net, x: net.head(net.batch_norm(net.features(x))),
    ),
    "channel-softmax": (
        "conv",
        lambda net, x: net.head(net.features(x).softmax(1)),
        lambda net, x: net.head(net.features(x).sigmoid()),
    ),
    "channel-reduction": (
        "conv",
        lambda net, x: net.head_of_one(net.features(x).mean(1, keepdim=True)),
        lambda net, x: net.head_of_one(net.sum(net.features(x))),
    ),
    "size-as-value": (
        "conv",
        lambda net, x: net.head(net.features(x) * net.conv(x)[0, :, 0].numel() ** -0.5),
        lambda net, x: net.head(net.features(x) * net.root),
    ),
    "meets-constant": (
        "conv",
        lambda net, x: net.head(masked(net.features(x))),
        lambda net, x: net.head(net.features(x) * net.scale),
    ),
    "tied-parameter": (
        "encode",
        lambda net, x: net.head(F.linear(net.encode(net.features(x)), net.encode.weight.t())),
        lambda net, x: net.head(net.decode(net.encode(net.features(x)))),
    ),
    "bilinear": (
        "conv",
        lambda net, x: similarities(net.conv(x)),
        lambda net, x: similarities(net.to_three(net.conv(x))),
    ),
    "computed-kernel": (
        "conv",
        lambda net, x: net.head(F.conv2d(net.conv(x), net.second.weight.tanh()).mean((2, 3))),
        lambda net, x: net.head(F.conv2d(net.conv(x), net.second.weight).mean((2, 3))),
    ),
    "single-channel": (
        "conv",
        lambda net, x: net.head_of_one(net.features(x)[:, 0].unsqueeze(1)),
        lambda net, x: net.head_of_one(net.features(x)[:, 0:1]),
    ),
}


def traced(body: Forward) -> Graph:
    return trace(Net(body).eval(), torch.randn(2, 3, 5, 5))


def codes(graph: Graph, space: str) -> set[str]:
    return {verdict.code for verdict in graph.spaces[space].verdicts}


@pytest.mark.parametrize("code", PAIRS)
def test_following_the_hint_lifts_the_refusal(code: str) -> None:
    space, before, after = PAIRS[code]
    assert code in codes(traced(before), space)
    mended = traced(after)
    names = [name for name in mended.spaces if codes(mended, name) == {""}]
    assert space in {name.partition("#")[0] for name in names}
    checks = list(check_graph(mended, spaces=names))
    assert {check.outcome for check in checks if check.check == "split"} == {"ok"}
