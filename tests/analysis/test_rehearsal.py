"""A verdict is tried before it is given: what a trial rewrite does not pass is frozen, with the node."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from morphir.analysis.tracing import trace
from morphir.ir.graph import Graph
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.oracle.oracle import check_graph
from passes.transform import transform


@fx.wrap
def halves_joined(x: Tensor) -> Tensor:
    """Kept whole by fx, so that nothing in it can be rewritten; follows an even number of channels alone."""
    return x.view(-1, 2 * (x.size(1) // 2))


class Halved(nn.Module):
    """Two spaces, of which one passes the function that is kept whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 4, 1)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(halves_joined(self.second(self.first(x).relu()).mean((2, 3))))


def facts(graph: Graph, space: str) -> set[tuple[str, str, str | None]]:
    return {(v.kind, v.code, v.node) for v in graph.spaces[space].verdicts}


def test_what_does_not_follow_is_frozen_at_its_node_and_the_rest_is_not() -> None:
    graph = trace(Halved().eval(), torch.randn(2, 3, 5, 5))
    assert facts(graph, "second") == {("frozen", "trial-failed", "halves_joined")}
    assert facts(graph, "first") == {("exact", "", None)}
    verdict = graph.spaces["second"].verdict(0)
    assert str(verdict.source).startswith("test_rehearsal.py:") and verdict.suggestion
    transform(graph, [Split("first", 0)])
    assert facts(graph, "second") == {("frozen", "trial-failed", "halves_joined")}, "kept over rewrites"
    clone = copy.deepcopy(graph)
    transform(clone, [Split("first", 0)])
    assert facts(clone, "second") == {("frozen", "trial-failed", "halves_joined")}, "kept by copies"


class WrittenDown(Halved):
    """The same arithmetic in the program itself: the size is written down where it does not follow."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).mean((2, 3))
        return self.out(x.view(-1, 2 * (x.size(1) // 2)))


@pytest.mark.parametrize("morphism", [Split("second", 1), Prune("second", 1)], ids=str)
def test_a_size_that_counts_channels_alone_is_written_down(morphism: Split | Prune) -> None:
    graph = trace(WrittenDown().eval(), torch.randn(2, 3, 5, 5))
    assert facts(graph, "second") == {("exact", "", None)}
    assert [check for check in check_graph(graph) if check.outcome == "failed"] == []
    transform(graph, [morphism])
    assert graph(torch.randn(7, 3, 9, 9)).shape == (7, 2), "batch and image size stay free"


class HeadsOfStream(nn.Module):
    """Attention in the usual style: the size of a head is computed from the stream's width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return self.head(x.mean(1))


def test_the_stream_grows_and_the_heads_stay() -> None:
    graph = trace(HeadsOfStream().eval(), torch.randn(2, 5, 3))
    assert facts(graph, "stem") == {("exact", "", None)}
    assert {code for _, code, _ in facts(graph, "qkv")} == {"bilinear"}
    checks = list(check_graph(graph))
    assert [check for check in checks if check.outcome == "failed"] == []
    assert {check.check for check in checks if check.outcome == "ok"} >= {"split", "prune", "plan", "retrace"}


class RolledShuffle(nn.Module):
    """A roll by one after a shuffle by view: where the copies lie, no literal can say."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, _, h, w = x.shape
        x = x.view(n, 2, 3, h, w).transpose(1, 2).reshape(n, 6, h, w)
        return self.out(torch.roll(x, 1, 1)).mean((2, 3))


def test_a_roll_between_the_places_of_a_group_is_frozen() -> None:
    graph = trace(RolledShuffle().eval(), torch.randn(2, 3, 4, 4))
    assert facts(graph, "conv") == {("frozen", "trial-failed", "roll")}


class HalvedAgain(nn.Module):
    """Two units of a ShuffleNet on six channels: shuffled and halved until all of them are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.branches = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            kept, changed = x.chunk(2, dim=1)
            x = torch.cat((kept, branch(changed)), dim=1)
            n, channels, h, w = x.shape
            x = x.view(n, 2, channels // 2, h, w).transpose(1, 2).reshape(n, channels, h, w)
        return self.out(x).mean((2, 3))


def test_channels_that_regroup_with_their_number_are_frozen() -> None:
    graph = trace(HalvedAgain().eval(), torch.randn(2, 3, 4, 4))
    assert {(kind, code) for kind, code, _ in facts(graph, "stem")} == {("frozen", "regrouped")}


class ShapedLike(nn.Module):
    """Two spaces of one width, of which one takes the other's shape: either alone does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.out = nn.Linear(96, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.one(x).flatten(1).view_as(self.two(x).flatten(1)))


def test_spaces_that_follow_together_alone_are_frozen() -> None:
    graph = trace(ShapedLike().eval(), torch.randn(2, 3, 4, 4))
    assert {code for name in ("one", "two") for _, code, _ in facts(graph, name)} == {"trial-failed"}
