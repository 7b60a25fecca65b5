"""Costs against networks that are really built, and against PyTorch's own count of operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from morphir.analysis.cost import ADDED, Cost, cost, delta_cost, delta_cost_of_copies
from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split

BATCH = 3


def plain(first: int, second: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, stride=2),
        nn.Flatten(),
        nn.Linear(second * 9, 5),
    )


def depthwise(first: int, second: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, first, 3, bias=False),
        nn.Conv2d(first, first, 3, groups=first),
        nn.Conv2d(first, second, 1),
        nn.PReLU(second),
        nn.ConvTranspose2d(second, 3, 2, stride=2),
        nn.Flatten(),
    )


def grouped(first: int, second: int) -> nn.Module:
    """Every group holds two rows of the kernel that makes it."""
    return nn.Sequential(
        nn.Conv2d(3, 2 * first, 3),
        nn.Conv2d(2 * first, 2 * second, 3, groups=2),
        nn.ConvTranspose2d(2 * second, 4, 2, groups=2),
        nn.Flatten(),
    )


class Gated(nn.Module):
    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, first, 3)
        self.squeeze = nn.Linear(first, second)
        self.expand = nn.Linear(second, first)
        self.project = nn.Conv1d(first, 4, 1)
        self.matrix = nn.Parameter(torch.randn(first, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        gate = torch.sigmoid(self.expand(torch.relu(self.squeeze(y.mean((2, 3))))))
        y = (y * gate[:, :, None, None]).flatten(2)
        return torch.cat([self.project(y).flatten(1), (y.transpose(1, 2) @ self.matrix).flatten(1)], 1)


class Attentive(nn.Module):
    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3, first)
        self.up = nn.Linear(first, second)
        self.down = nn.Linear(second, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(torch.relu(self.up(self.embed(x.flatten(2).transpose(1, 2)))))
        return self.attention(x, x, x, need_weights=False)[0]


Build = Callable[[int, int], nn.Module]
NETS: dict[str, tuple[Build, tuple[str, str]]] = {
    "plain": (plain, ("0", "4")),
    "depthwise": (depthwise, ("0", "2")),
    "grouped": (grouped, ("0", "1")),
    "gated": (Gated, ("conv", "squeeze")),
    "attentive": (Attentive, ("embed", "up")),
}
WIDTHS = (4, 6)


def example() -> Tensor:
    return torch.randn(BATCH, 3, 16, 16)


def counted(model: nn.Module) -> Cost:
    """Counts the parameters of a real model, and half of its floating point operations for one sample."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know the fused kernels
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.eval()(example())
    torch.backends.mha.set_fastpath_enabled(fused)
    macs, rest = divmod(counter.get_total_flops(), 2 * BATCH)
    assert rest == 0
    return Cost(sum(p.numel() for p in model.parameters()), macs)


@pytest.mark.parametrize("name", NETS)
def test_cost_of_a_graph(name: str) -> None:
    model = NETS[name][0](*WIDTHS).eval()
    assert cost(trace(model, example())) == counted(model)


def changes(graph: Graph, kind: Any, space: str) -> list[Cost]:
    return [delta_cost(graph, kind, space, index) for index in range(graph.space(space).width)]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", ["split", "prune"])
def test_change_of_one_morphism_is_that_of_the_model_of_the_new_width(name: str, kind: str) -> None:
    build, spaces = NETS[name]
    graph, before = trace(build(*WIDTHS).eval(), example()), counted(build(*WIDTHS))
    for position, space in enumerate(spaces):
        widths = list(WIDTHS)
        widths[position] += 1 if kind == "split" else -1
        expected = counted(build(*widths)) - before
        assert changes(graph, kind, space) == [expected] * WIDTHS[position]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("copies", [((2, 1, 0, 2), (1,) * 6), ((1, 2, 1, 1), (0, 0, 2, 2, 2, 1))])
def test_change_of_a_plan_is_that_of_the_model_of_the_new_widths(
    name: str, copies: Sequence[Sequence[int]]
) -> None:
    build, spaces = NETS[name]
    graph = trace(build(*WIDTHS).eval(), example())
    expected = counted(build(*map(sum, copies))) - counted(build(*WIDTHS))
    assert delta_cost_of_copies(graph, dict(zip(spaces, copies, strict=True))) == expected


def test_groups_of_one_space_may_cost_differently() -> None:
    class Unequal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.one = nn.Linear(1, 7)
            self.two = nn.Linear(2, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return torch.cat([self.one(y[:, :1]), self.two(y[:, 1:])], 1)

    graph = trace(Unequal(), torch.randn(BATCH, 3))
    rows, left, right = Cost(4, 3), Cost(7, 7), Cost(5, 5)
    assert changes(graph, "split", "first") == [rows + left, rows + right, rows + right]
    assert changes(graph, "prune", "first") == [-(rows + left), -(rows + right), -(rows + right)]


def test_shared_parameters_count_once_and_their_products_every_time() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4, bias=False)
            self.square = nn.Linear(4, 4, bias=False)
            self.last = nn.Linear(4, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.square(self.square(self.first(x))))

    graph = trace(Recurrent(), torch.randn(BATCH, 3))
    assert cost(graph) == Cost(12 + 16 + 8, 12 + 2 * 16 + 8)
    assert delta_cost(graph, "split", "first", 0) == Cost(3 + (25 - 16) + 2, 3 + 2 * (25 - 16) + 2)


def test_costs_follow_a_replaced_channel_layer() -> None:
    graph, wider = trace(plain(4, 6), example()), trace(plain(5, 6), example())
    assert cost(graph) != cost(wider)
    graph.get_submodule("0").weight = wider.get_submodule("0").weight
    graph.attach(wider.channels)
    assert cost(graph).macs == cost(wider).macs


def test_the_kinds_of_morphisms_are_those_that_are_declared() -> None:
    kinds: tuple[type[Morphism], ...] = (Split, Prune)
    assert {kind.kind: len(kind.children) - 1 for kind in kinds} == ADDED


def test_arithmetic_and_text() -> None:
    assert Cost(3, 5) + Cost(1, 2) - Cost(2, 2) == -Cost(-2, -5)
    assert str(Cost(1234, 5678901)) == "1,234 parameters, 5,678,901 MACs"


def test_unknown_spaces_and_groups_and_plans_of_another_width_are_refused() -> None:
    graph = trace(plain(4, 6), example())
    with pytest.raises(MorphirError, match="no channel space 'conv'"):
        delta_cost(graph, "split", "conv", 0)
    with pytest.raises(MorphirError, match="no channel group 4"):
        delta_cost(graph, "split", "0", 4)
    with pytest.raises(MorphirError, match="has 4 channel groups, the plan names 3"):
        delta_cost_of_copies(graph, {"0": [1, 1, 1]})
