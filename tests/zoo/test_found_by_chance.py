"""What random networks and other collections' models broke, each as the smallest network that does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.tracing import trace
from morphir.errors import RewriteError
from morphir.ir.graph import Graph
from morphir.morphisms.prune import Prune
from morphir.runtime.oracle.oracle import check_graph
from passes.transform import transform

Prove = Callable[..., Any]


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_a_channel_picked_twice_and_flattened(prove: Prove) -> None:
    """Where its two copies are all that is left, they do not differ, and yet lie along the channels."""
    parts = {"one": conv(3, 3), "order": torch.tensor([2, 0, 0]), "head": nn.Linear(3 * 64, 2)}

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.one(x)[:, net.order].movedim(1, -1).reshape(-1, 3 * 64))

    graph = prove(forward, {"one": "3 exact"}, **parts)
    transform(graph, [Prune("one", 1), Prune("one", 2)])
    assert graph(torch.randn(2, 3, 8, 8)).shape == (2, 2)


def test_a_gate_over_stacked_branches(prove: Prove) -> None:
    """The gate's channels lie along branches and channels, those of the stack along channels alone."""

    def forward(net: Any, x: Tensor) -> Tensor:
        stacked = torch.stack([net.one(x), net.two(x)], dim=1)
        gate = net.gate(stacked.sum(1).mean((2, 3), keepdim=True))
        n, channels, height, width = gate.shape
        weights = gate.view(n, 2, channels // 2, height, width).softmax(1)
        return net.head((stacked * weights).sum(1))

    prove(forward, {"one": "4 exact"}, one=conv(3, 4), two=conv(3, 4, 3), gate=conv(4, 8), head=conv(4, 2))


def test_attention_without_heads_in_onnx(prove: Prove) -> None:
    """torch's ONNX form of attention wants a dimension of heads; the stream lies in three."""

    def forward(net: Any, x: Tensor) -> Tensor:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(net.q(tokens), net.k(tokens), net.v(tokens))
        return net.head(mixed.mean(1))

    prove(
        forward,
        {"stem": "4 exact", "q": "3 frozen:bilinear", "k": "3 frozen:bilinear", "v": "5 exact"},
        onnx=True,
        stem=conv(3, 4, stride=4),
        q=nn.Linear(4, 3),
        k=nn.Linear(4, 3),
        v=nn.Linear(4, 5),
        head=nn.Linear(5, 2),
    )


def test_a_norm_whose_shape_is_read_off(prove: Prove) -> None:
    """``F.layer_norm(x, x.shape[1:])``: a shape that is no literal follows by itself."""
    prove(
        lambda net, x: net.head(F.layer_norm(net.one(x), net.one(x).shape[1:])),
        {"one": "4 prune-only:channel-norm"},
        one=conv(3, 4),
        head=conv(4, 2),
    )


def test_one_slope_left(prove: Prove) -> None:
    """A PReLU with one slope has it for all channels: two have to stay."""
    graph = prove(
        lambda net, x: net.head(net.act(net.one(x))),
        {"one": "2 exact"},
        one=conv(3, 2),
        act=nn.PReLU(2),
        head=conv(2, 2),
    )
    refuses_to_leave_one(graph, [Prune("one", 0)], "act")


def test_one_slope_left_of_some(prove: Prove) -> None:
    """Two channels have to stay of those that the PReLU reads, whichever of the others do."""
    graph = prove(
        lambda net, x: net.head(net.act(net.one(x)[:, :3])),
        {"one": "6 exact"},
        one=conv(3, 6),
        act=nn.PReLU(3),
        head=conv(3, 2),
    )
    refuses_to_leave_one(graph, [Prune("one", 0), Prune("one", 2)], "act")
    transform(graph, [Prune("one", 0), Prune("one", 3), Prune("one", 4)])
    assert graph.get_parameter("act.weight").shape == (2,)


def test_one_channel_left_in_einsum(prove: Prove) -> None:
    """It lays out a dimension of size 1 in another way than others."""
    graph = prove(
        lambda net, x: net.head(torch.einsum("nchw,dc->ndhw", net.one(x)[:, [0, 3]], net.weight)),
        {"one": "4 exact", "weight": "5 exact"},
        one=conv(3, 4),
        weight=nn.Parameter(torch.randn(5, 2)),
        head=conv(5, 2),
    )
    refuses_to_leave_one(graph, [Prune("one", 0)], "einsum")


def refuses_to_leave_one(graph: Graph, prunes: list[Prune], node: str) -> None:
    with pytest.raises(RewriteError) as caught:
        transform(graph, prunes)
    assert (caught.value.code, caught.value.node) == ("too-few-left", node)


def test_one_channel_left_beside_a_gate_of_one(prove: Prove) -> None:
    """A single channel would meet the gate's as its like, and be tied to it."""
    graph = prove(
        lambda net, x: net.head(net.one(x) * net.gate(x).sigmoid()),
        {"one": "2 exact", "gate": "1 frozen:size-1-broadcast"},
        one=conv(3, 2),
        gate=conv(3, 1),
        head=conv(2, 2),
    )
    refuses_to_leave_one(graph, [Prune("one", 0)], "mul")


class Picked(nn.Module):
    """An order of channels that only the weights hold."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = conv(3, 4), conv(4, 2)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(x)[:, self.order]).mean((2, 3))


def test_traced_again_with_the_order_that_its_weights_hold() -> None:
    """Source has no values of buffers: the network that is traced again has loaded its weights."""
    checks = {check.check: check for check in check_graph(trace(Picked().eval(), torch.randn(2, 3, 4, 4)))}
    assert checks["retrace"].outcome == "ok", checks["retrace"].detail


def test_one_channel_left_of_a_part_at_a_depthwise_convolution_or_an_instance_norm(prove: Prove) -> None:
    """With one channel the one is an ordinary convolution; the other's lies along the batch as well."""
    for name, part in (("depthwise", conv(2, 4, 3, groups=2)), ("norm", nn.InstanceNorm2d(2, affine=True))):
        graph = prove(
            lambda net, x: net.head(net.part(net.one(x)[:, [0, 2]]).relu()),
            {"one": "3 exact"},
            one=conv(3, 3),
            part=part,
            head=conv(4 if name == "depthwise" else 2, 2),
        )
        refuses_to_leave_one(graph, [Prune("one", 0)], "part")


def test_copies_of_a_value_without_channels(prove: Prove) -> None:
    """How many there are is not rewritten, so what lies beside them cannot change its number."""

    def forward(net: Any, x: Tensor) -> Tensor:
        left, right = net.one(x).view(-1, 2, 1, 8, 8).unbind(1)
        copies = (left * right).repeat_interleave(2, 1)
        return net.head(net.two(copies) + F.pad(copies, (0, 0, 0, 0, 1, 1)))

    prove(
        forward,
        {"one": "2 frozen:single-channel", "two": "2 exact, 2 frozen:meets-constant"},
        one=conv(3, 2),
        two=conv(2, 4),
        head=conv(4, 2),
    )


def test_a_view_that_fails_on_fake_tensors_alone() -> None:
    """Of one channel, einsum's result is laid out in another way on fake tensors than in truth."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1, 3))
            self.conv = conv(1, 3, 3)
            self.head = nn.Linear(192, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(
                self.conv(torch.einsum("nchw,dc->ndhw", x, self.weight).contiguous()).view(-1, 192)
            )

    graph = trace(Net(), torch.randn(3, 3, 8, 8))
    for check in check_graph(graph, exports=False):
        assert check.outcome != "failed", check


def test_a_cut_that_leaves_both_copies_of_one_group(prove: Prove) -> None:
    """Once a group is pruned, all that is cut out is one group twice: nothing varies along it."""
    graph = prove(
        lambda net, x: net.head(net.depthwise(net.one(x)).narrow(1, 0, 4)),
        {"one": "3 exact"},
        one=conv(3, 3),
        depthwise=conv(3, 6, 3, groups=3),
        head=conv(4, 2),
    )
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        graph.get_submodule("head").weight[:, 2:] = 0
        wanted = graph(x)
    transform(graph, [Prune("one", 1)])
    torch.testing.assert_close(graph(x), wanted)
