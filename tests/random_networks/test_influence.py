"""The independent check of the analysis' claims finds claims that are wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from morphir.analysis.tracing import trace
from morphir.ir.channels import ChannelLayer, ChannelSpace
from morphir.ir.graph import Graph
from morphir.morphisms.split import Split
from random_networks.influence import Subject, wrong_claims, wrong_split


class Chain(nn.Module):
    """Two spaces: ``first`` passes a norm and a residual stream, ``second`` is read by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 2, 1)
        self.right = nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.second(torch.relu(self.norm(self.first(images))))
        return self.left(stream.sigmoid()) + self.right(stream.flip(1))


def chain() -> Graph:
    return trace(Chain(), torch.zeros(2, 3, 5, 5))


def with_space(graph: Graph, space: ChannelSpace) -> Graph:
    layer = graph.channels
    spaces = {**layer.spaces, space.name: space}
    graph.attach(ChannelLayer(spaces, layer.values, layer.products))
    return graph


def claims(graph: Graph) -> list[str]:
    return list(wrong_claims(Subject(graph, 0), 0, most=4))


def test_right_claims_pass() -> None:
    graph = chain()
    assert [verdict.kind for verdict in graph.spaces["second"].verdicts] == ["exact"] * 4
    assert claims(graph) == []
    assert wrong_split(Subject(graph, 0), 0) == ""


def test_a_missing_edge_is_found() -> None:
    graph = chain()
    space = graph.spaces["second"]
    edges = tuple(consumer for consumer in space.consumers if consumer.node != "right")
    found = claims(with_space(graph, replace(space, consumers=edges)))
    assert "second[0] is read by %right from %flip, no edge of it" in found


def test_a_region_parameter_in_another_order_is_found() -> None:
    graph = chain()
    space = graph.spaces["first"]
    bindings = tuple(
        replace(binding, groups=binding.groups[::-1]) if binding.parameter == "norm.bias" else binding
        for binding in space.bindings
    )
    found = claims(with_space(graph, replace(space, bindings=bindings)))
    assert found and all("where it is not said to lie" in claim for claim in found)


def test_an_edge_that_the_group_does_not_reach_is_found() -> None:
    graph = chain()
    space = graph.spaces["second"]
    edges = tuple(
        replace(consumer, groups=consumer.groups[::-1]) if consumer.node == "right" else consumer
        for consumer in space.consumers
    )
    found = claims(with_space(graph, replace(space, consumers=edges)))
    assert "second[0] does not reach %flip at 0, where %right is said to read it" in found


def test_a_split_that_forgets_theta_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Split, "parameters", None)
    assert "outputs differ by" in wrong_split(Subject(chain(), 0), 0)
