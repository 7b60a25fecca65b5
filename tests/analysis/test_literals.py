"""Numbers in the program that hold a channel count follow a rewrite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.literals import rewrite_literals
from morphir.analysis.module_literals import module_attributes, rewrite_modules
from morphir.analysis.tracing import trace


class Net(nn.Module):
    """A layer of four channels, and a program that holds literals."""

    def __init__(self, program: Callable[[Tensor, nn.Parameter], object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.extra = nn.Parameter(torch.ones(4, 1, 2, 2))
        self.program = program

    def forward(self, x: Tensor) -> object:
        return self.program(self.conv(x), self.extra)


SPLIT_FIRST_PRUNE_LAST = (2, 1, 1, 0)
ALL = slice(None)
SPLIT_SECOND_TWICE = (1, 3, 1, 1)


@pytest.mark.parametrize(
    ("program", "node", "copies", "arguments"),
    [
        (lambda x, _: x.view(2, 4, 9), "view", SPLIT_SECOND_TWICE, (2, 6, 9)),
        (lambda x, _: x.view(2, 4, 9), "view", SPLIT_FIRST_PRUNE_LAST, (2, 4, 9)),
        (lambda x, _: x.reshape((2, 36)), "reshape", SPLIT_SECOND_TWICE, ((2, 54),)),
        (lambda x, _: torch.reshape(x, (-1, 4, 9)), "reshape", SPLIT_SECOND_TWICE, ((-1, 6, 9),)),
        (lambda x, _: x.view(2, -1), "view", SPLIT_SECOND_TWICE, (2, -1)),
        (lambda x, _: x.flatten(1).unflatten(1, (4, 9)), "unflatten", SPLIT_SECOND_TWICE, (1, (6, 9))),
        (lambda x, _: x.split([1, 3], 1)[1], "split", SPLIT_SECOND_TWICE, ([1, 5], 1)),
        (lambda x, _: x.split(2, dim=1)[1], "split", SPLIT_FIRST_PRUNE_LAST, ([3, 1],)),
        (lambda x, _: x[:, 1:3], "getitem", SPLIT_FIRST_PRUNE_LAST, ((slice(None), slice(2, 4)),)),
        (lambda x, _: x[:, :2, :2], "getitem", (2, 1, 1, 0), ((ALL, slice(None, 3), slice(None, 2)),)),
        (lambda x, _: x[..., 1:3, :, :], "getitem", (2, 1, 1, 0), ((..., slice(2, 4), ALL, ALL),)),
        (lambda x, _: x[:, -2:], "getitem", SPLIT_SECOND_TWICE, ((slice(None), slice(4, None)),)),
        (lambda x, _: x.chunk(2, 2)[0], "chunk", SPLIT_SECOND_TWICE, (2, 2)),
    ],
)  # fmt: skip
def test_literals_of_a_call(
    program: Callable[..., object], node: str, copies: Sequence[int], arguments: tuple[Any, ...]
) -> None:
    graph = trace(Net(program), torch.randn(2, 3, 3, 3))
    rewrite_literals(graph.graph, graph.channels, {"conv": copies})
    assert graph.node(node).args[1:] == arguments


def test_groups_of_a_functional_depthwise_convolution() -> None:
    graph = trace(Net(lambda x, w: F.conv2d(x, w, groups=4)), torch.randn(2, 3, 3, 3))
    rewrite_literals(graph.graph, graph.channels, {"conv": SPLIT_SECOND_TWICE})
    assert graph.node("conv2d").kwargs["groups"] == 6


def test_shape_of_a_functional_layer_norm() -> None:
    def program(x: Tensor, _: nn.Parameter) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), (4,))

    graph = trace(Net(program), torch.randn(2, 3, 3, 3))
    rewrite_literals(graph.graph, graph.channels, {"conv": SPLIT_SECOND_TWICE})
    assert graph.node("layer_norm").args[1] == (6,)


@pytest.mark.parametrize(
    ("module", "wider"),
    [
        (nn.Conv2d(4, 6, 3), nn.Conv2d(5, 7, 3)),
        (nn.Conv1d(4, 6, 3, groups=2), nn.Conv1d(8, 10, 3, groups=2)),
        (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(5, 5, 3, groups=5)),
        (nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(3, 6, 3, groups=3)),
        (nn.ConvTranspose2d(4, 6, 3), nn.ConvTranspose2d(5, 7, 3)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 8, 3, groups=2)),
        (nn.ConvTranspose2d(4, 4, 3, groups=4), nn.ConvTranspose2d(5, 5, 3, groups=5)),
        (nn.Linear(4, 6), nn.Linear(5, 7)),
        (nn.BatchNorm2d(4), nn.BatchNorm2d(6)),
        (nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(6, affine=False)),
        (nn.InstanceNorm2d(4, affine=True), nn.InstanceNorm2d(6, affine=True)),
        (nn.GroupNorm(2, 4), nn.GroupNorm(2, 6)),
        (nn.LayerNorm((4, 2)), nn.LayerNorm((6, 2))),
        (nn.PReLU(4), nn.PReLU(6)),
    ],
    ids=str,
)
def test_attributes_follow_shapes(module: nn.Module, wider: nn.Module) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in wider.state_dict().items()}
    for name, value in module_attributes(module, shapes).items():
        setattr(module, name, value)
    assert str(module) == str(wider)


@pytest.mark.parametrize(
    ("middle", "copies", "wider"),
    [
        (nn.ChannelShuffle(2), (2, 1, 1), nn.ChannelShuffle(2)),
        (nn.Unflatten(1, (6, 1)), SPLIT_SECOND_TWICE, nn.Unflatten(1, (8, 1))),
        (nn.GroupNorm(6, 6, affine=False), SPLIT_SECOND_TWICE, nn.GroupNorm(8, 8, affine=False)),
        (nn.GroupNorm(2, 6, affine=False), (2, 1, 1), nn.GroupNorm(2, 8, affine=False)),
        (nn.InstanceNorm2d(6), SPLIT_SECOND_TWICE, nn.InstanceNorm2d(8)),
        (
            nn.LayerNorm((6, 5, 5), elementwise_affine=False),
            (2, 1, 1, 1, 1, 0),
            nn.LayerNorm((6, 5, 5), elementwise_affine=False),
        ),
        (
            nn.LayerNorm((6, 5, 5), elementwise_affine=False),
            (2, 2, 1, 1, 1, 1),
            nn.LayerNorm((8, 5, 5), elementwise_affine=False),
        ),
    ],
    ids=str,
)
def test_options_of_modules_without_parameters(
    middle: nn.Module, copies: Sequence[int], wider: nn.Module
) -> None:
    program = nn.Sequential(nn.Conv2d(3, 6, 1), middle, nn.Flatten(), nn.Linear(150, 2))
    graph = trace(program, torch.randn(2, 3, 5, 5))
    copies = (*copies, *[1] * (graph.spaces["0"].width - len(copies)))
    rewrite_modules(graph, graph.graph, graph.channels, {"0": copies})
    assert str(graph.get_submodule("1")) == str(wider)


def test_a_norm_without_affine_map_holds_its_own_dimensions_alone() -> None:
    last = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 2))
    graph = trace(last, torch.randn(2, 3))
    assert {(v.kind, v.code) for v in graph.spaces["0"].verdicts} == {("prune-only", "channel-norm")}
    space = nn.Sequential(nn.Conv2d(3, 6, 1), nn.LayerNorm(5, elementwise_affine=False), nn.Conv2d(6, 2, 1))
    assert {v.kind for v in trace(space, torch.randn(2, 3, 5, 5)).spaces["0"].verdicts} == {"exact"}
