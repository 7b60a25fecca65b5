"""A network, a pipeline of 40 rewrites of it, and one among them that is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

import morphir
from morphir.ir.graph import Graph
from morphir.ir.remarks import Remark
from morphir.ir.source import source_of
from morphir.morphisms.plan import index_maps
from passes.base import Pass, PassResult
from passes.morph_channels import SplitChannels
from passes.rewriter import Rewriter


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        x = torch.relu(self.conv2(x))
        return self.head(x.mean((2, 3)))


def traced() -> Graph:
    torch.manual_seed(3)
    return morphir.trace(Net().eval(), torch.zeros(2, 3, 8, 8))


@dataclass(frozen=True)
class WrongSplit(Pass):
    """Splits one group, and scales its consumers' columns by 0.6 instead of one half."""

    name: ClassVar[str] = "wrong-split"

    space: str
    index: int

    def apply(self, rewriter: Rewriter) -> PassResult:
        split = morphir.Split(self.space, self.index)
        (right,) = index_maps(rewriter.graph, [split])
        wrong = replace(right, scales=tuple(0.6 if scale == 0.5 else scale for scale in right.scales))
        rewriter.apply(self.name, [wrong], [str(split)])
        node = rewriter.graph.node(self.space)
        remark = Remark(
            "applied", "split", "split in two", self.space, self.index, node.name, source_of(node)
        )
        return PassResult((wrong,), (remark,))


def splits(count: int, wrong: int | None = None, seed: int = 0) -> Iterator[Pass]:
    """Yields passes of one split each; indices are of the groups that every width has."""
    rng = random.Random(seed)
    for number in range(1, count + 1):
        space, index = rng.choice(["conv1", "conv2"]), rng.randrange(4)
        right = SplitChannels((morphir.Split(space, index),))
        yield WrongSplit(space, index) if number == wrong else right
