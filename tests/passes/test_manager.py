"""The pass manager: a pass that does harm is named, and leaves none behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from morphir.analysis.tracing import trace
from morphir.errors import VerificationError
from morphir.ir.graph import Graph
from morphir.ir.verify import verify
from morphir.morphisms.split import Split
from passes.base import Pass, PassResult
from passes.manager import PassManager
from passes.morph_channels import PruneChannels, SplitChannels
from passes.rewriter import Rewriter


@dataclass(frozen=True)
class LeavesDisorder(Pass):
    """Loses what is known of the values, and says that all is well."""

    name: ClassVar[str] = "leave-disorder"

    def apply(self, rewriter: Rewriter) -> PassResult:
        rewriter.graph.attach(replace(rewriter.graph.channels, values={}))
        return PassResult()


def test_a_pass_that_leaves_the_graph_inconsistent_is_named() -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 3))
    with pytest.raises(VerificationError) as caught:
        PassManager((LeavesDisorder(),)).run(graph)
    expected = "the pass leave-disorder (LeavesDisorder) left the graph inconsistent: "
    assert caught.value.message.startswith(expected)
    assert "through its rewriter alone" in str(caught.value.hint)
    assert isinstance(caught.value.__cause__, VerificationError)
    verify(graph)


@dataclass(frozen=True)
class WritesAroundTheRewriter(Pass):
    """Does one forbidden thing to the graph, and says nothing of it."""

    name: ClassVar[str] = "write-around"

    what: str

    def apply(self, rewriter: Rewriter) -> PassResult:
        graph = rewriter.graph
        linear = graph.get_submodule("0")
        if self.what == "parameter":
            linear.weight = nn.Parameter(torch.zeros(5, 3))
        elif self.what == "shape":
            linear.weight.data = torch.zeros(5, 3)
        elif self.what == "attribute":
            linear.out_features = 5
        elif self.what == "node":
            graph.graph.create_node("call_function", torch.relu, (graph.node("_0"),))
        elif self.what == "order":
            graph.node("_0").prepend(graph.node("_2"))
        elif self.what == "target":
            graph.node("_0").target = "missing"
        return PassResult()


@pytest.mark.parametrize("what", ["parameter", "shape", "attribute", "node", "order", "target"])
def test_a_pass_that_writes_around_the_rewriter_is_found(what: str) -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 3))
    with pytest.raises(VerificationError, match="the pass write-around .* left the graph inconsistent"):
        PassManager((WritesAroundTheRewriter(what),)).run(graph)


def test_a_pass_that_does_nothing_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 3))
    verified: list[Graph] = []
    monkeypatch.setattr("passes.manager.verify", verified.append)
    PassManager((SplitChannels(), WritesAroundTheRewriter("nothing"))).run(graph)
    assert not verified
    PassManager((SplitChannels((Split("0", 1),)), PruneChannels())).run(graph)
    assert verified == [graph]
