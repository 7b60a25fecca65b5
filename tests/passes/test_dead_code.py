"""Unread values go, everything that may write stays, and an error brings all of it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from morphir.analysis.tracing import trace
from morphir.errors import RewriteError
from passes.base import Pass, PassResult
from passes.dead_code import EliminateDeadCode
from passes.manager import PassManager
from passes.rewriter import Rewriter


class Wasteful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.unread = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        self.unread(x).relu()
        self.norm(x)
        x.mul_(2.0)
        return self.out(x)


def test_only_what_can_do_nothing_goes() -> None:
    model, inputs = Wasteful(), torch.randn(2, 3, 4, 4)
    graph = trace(model, inputs)
    expected, keys = graph(inputs), list(graph.state_dict())
    report = PassManager((EliminateDeadCode(),)).run(graph)
    assert [remark.node for remark in report.remarks] == ["relu", "unread"]
    assert [node.name for node in graph.graph.nodes] == ["x", "conv", "norm", "mul_", "out", "output"]
    assert torch.equal(graph(inputs), expected) and list(graph.state_dict()) == keys
    # The unread convolution was a consumer that a split of conv had to widen; now it is not.
    assert [consumer.node for consumer in graph.spaces["conv"].consumers] == ["out"]


@dataclass(frozen=True)
class Failing(Pass):
    name: ClassVar[str] = "failing"

    def apply(self, rewriter: Rewriter) -> PassResult:
        raise RewriteError("on purpose")


def test_a_later_error_brings_the_program_back() -> None:
    inputs = torch.randn(2, 3, 4, 4)
    graph = trace(Wasteful(), inputs)
    names = [node.name for node in graph.graph.nodes]
    with pytest.raises(RewriteError, match="on purpose") as caught:
        PassManager((EliminateDeadCode(), Failing())).run(graph)
    assert caught.value.__notes__ == ["in pass failing, after eliminate-dead-code"]
    assert [node.name for node in graph.graph.nodes] == names
    assert graph(inputs).shape == (2, 2, 4, 4)
