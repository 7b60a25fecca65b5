"""How many layers lie above a space, counted by walking every path."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import nn
from torch.nn import functional

from morphir import Graph, Learner, trace
from morphir.runtime.learning.depth import layers_above
from morphir.runtime.learning.working_copy import working_copy
from morphir.seeds import resolve


def _above(graph: Graph) -> dict[str, int]:
    return layers_above(graph.spaces.values(), working_copy(graph))


def _shortest(graph: Graph, space: str) -> int:
    edges = [(node.name, user.name) for node in graph.graph.nodes for user in node.users]
    program = nx.DiGraph(edges)
    ends = ((*own.producers, *own.consumers) for own in graph.spaces.values())
    mixing = {end.node for own in ends for end in own}
    paths = (
        path
        for consumer in graph.spaces[space].consumers
        for path in nx.all_simple_paths(program, consumer.node, "output")
    )
    return min((sum(name in mixing for name in path[1:]) for path in paths), default=0)


def test_a_chain_counts_down() -> None:
    graph = trace(resolve("vgg19", width=3), torch.zeros(2, 3, 32, 32))
    above = _above(graph)
    hidden = [above[name] for name, space in graph.spaces.items() if space.consumers]
    assert hidden == list(range(15, -1, -1))


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 4, 3, padding=1)
        self.squeeze = nn.Linear(4, 2)
        self.excite = nn.Linear(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = torch.relu(self.stem(images))
        # A call that leads nowhere, as guards do, is no way to an output.
        torch._assert(stem.shape[1] == 4, "four channels")
        stream = stem + self.second(torch.relu(self.first(stem)))
        gate = self.excite(torch.relu(self.squeeze(stream.mean((2, 3)))))
        return self.head((stream * gate.sigmoid()[:, :, None, None]).mean((2, 3)))


def test_the_shortest_path_counts() -> None:
    graph = trace(_Residual(), torch.zeros(2, 3, 4, 4))
    above = _above(graph)
    assert above == {name: _shortest(graph, name) for name in graph.spaces}
    assert above["first"] == 1  # behind second: head; squeeze and excite lie on a longer path


@pytest.mark.parametrize("model", ["chain", "residual"])
def test_scores_shrink_by_the_layers_above(model: str) -> None:
    """What is left of the Fisher's term, from two other learners' scores of the same batch."""
    torch.manual_seed(0)
    module = _Residual() if model == "residual" else resolve("vgg19", width=3, classes=3, image_size=8)
    images, labels = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 3
    graph = trace(module.double(), images)
    found = {}
    for name in ("none", "fisher", "shrunk-fisher"):
        learner = Learner(
            graph,
            lambda outputs, targets: functional.cross_entropy(outputs, targets, reduction="none"),
            learn_curvature="fisher",
            score_curvature=name,
            init_scale=0.5,
        )
        learner.step(images, labels)
        found[name] = learner.scores()
    assert found["none"]
    for plain, fisher, shrunk in zip(*found.values(), strict=True):
        left = 1 / (1 + _shortest(graph, plain.morphism.space) / 50)
        expected = plain.delta_loss + left * (fisher.delta_loss - plain.delta_loss)
        assert shrunk.delta_loss == pytest.approx(expected, rel=1e-6, abs=1e-12)


def _block(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class _Layers(nn.Module):
    def __init__(self, between: int = 5) -> None:
        super().__init__()
        self.a, self.b = _block(3, 4), _block(4, 5)
        self.c, self.d = _block(between, 6), _block(6, 5)
        self.head = nn.Linear(5, 3)


class _ResizedLike(_Layers):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        low = torch.relu(self.b(torch.relu(self.a(images))))
        high = torch.relu(self.d(torch.relu(self.c(functional.max_pool2d(low, 2)))))
        return self.head(functional.interpolate(high, size=low.shape[2:]).mean((2, 3)))


class _WrittenInPlace(_Layers):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stream = torch.relu(self.b(torch.relu(self.a(images))))
        stream.add_(self.d(torch.relu(self.c(stream))))
        return self.head(torch.relu(stream).mean((2, 3)))


class _MixedByMean(_Layers):
    def __init__(self) -> None:
        super().__init__(between=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = torch.relu(self.b(torch.relu(self.a(images)))).mean(1, keepdim=True)
        return self.head(torch.relu(self.d(torch.relu(self.c(mean)))).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (_ResizedLike, {"a": 3, "b": 2, "c": 1, "d": 0}),
        (_WrittenInPlace, {"a": 1, "b": 0, "c": 1}),
        (_MixedByMean, {"a": 3, "c": 1, "d": 0}),
    ],
)
def test_counted_by_hand(model: type[nn.Module], expected: dict[str, int]) -> None:
    """A size is no way to an output; what is written in place is; a kernel that reads no space mixes too."""
    above = _above(trace(model(), torch.zeros(2, 3, 8, 8)))
    assert {name: above[name] for name in expected} == expected
