"""What each pass does to the textual IR, as a difference of it before and after; a few nodes each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from morphir.analysis.tracing import trace
from morphir.ir.difference import difference
from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap
from morphir.ir.printer import print_graph
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from passes.base import Pass
from passes.batch_norm import ReexpressBatchNorm
from passes.dead_code import EliminateDeadCode
from passes.manager import PassManager
from passes.morph_channels import PruneChannels, SplitChannels

INPUTS = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(x)).relu())


class Joined(nn.Module):
    """A concatenation, whose reader has the channels of both."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.left(x), self.right(x)], 1))


class Grouped(nn.Module):
    """A convolution in two groups: a channel of each goes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(4, 2, 1)
        self.grouped = nn.Conv2d(6, 4, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.grouped(self.conv(x)))


class Residual(nn.Module):
    """Two producers of one space."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(x + self.block(x))


class Wasteful(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.relu().sum()
        return self.out(y)


CASES: dict[str, tuple[Callable[[], nn.Module], Pass]] = {
    "split-channels": (Plain, SplitChannels((Split("conv", 1),))),
    "split-channels-residual": (Residual, SplitChannels((Split("stem", 0),))),
    "prune-channels-concat": (Joined, PruneChannels((Prune("left", 0), Prune("right", 3)))),
    "prune-channels-grouped": (Grouped, PruneChannels((Prune("conv", 1),))),
    "prune-channels-residual": (Residual, PruneChannels((Prune("stem", 2),))),
    "eliminate-dead-code": (Wasteful, EliminateDeadCode()),
    "reexpress-batch-norm": (
        Plain,
        ReexpressBatchNorm([INPUTS], (IndexMap("conv", 3, (0, 1, 1, 2), (1, 0.5, 0.5, 1), (0, 1, -1, 0)),)),
    ),
}


def text(graph: Graph) -> list[str]:
    """The textual IR without the lines of this file."""
    return [line.partition("      # ")[0] for line in print_graph(graph).splitlines()]


def around(graph: Graph, item: Pass) -> str:
    """What a pass did to the IR, and to which tensors."""
    before = text(graph)
    values = {key: tensor.clone() for key, tensor in graph.state_dict().items()}
    result = PassManager((item,)).run(graph)
    found = list(difference(before, text(graph), ("before", "after")))
    changed = [
        f"@{key}: {list(values[key].shape)} -> {list(tensor.shape)}"
        for key, tensor in graph.state_dict().items()
        if values[key].shape != tensor.shape
    ]
    changed += [
        f"@{key}: new values"
        for key, tensor in graph.state_dict().items()
        if values[key].shape == tensor.shape and not torch.equal(values[key], tensor)
    ]
    return "\n".join([*map(str, result.index_maps), *(found or ["the same program"]), "", *changed, ""])


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    make, item = CASES[name]
    golden(name, around(trace(make().eval(), INPUTS), item))
