"""How many layers lie above a space, counted by walking every path."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import nn
from torch.nn import functional

from morphir import Graph, Learner, trace
from morphir.runtime.learning.depth import layers_above
from morphir.seeds import resolve


def _shortest(graph: Graph, space: str) -> int:
    edges = [(node.name, user.name) for node in graph.graph.nodes for user in node.users]
    program = nx.DiGraph(edges)
    mixing = {c.node for own in graph.spaces.values() for c in own.consumers}
    paths = (
        path
        for consumer in graph.spaces[space].consumers
        for path in nx.all_simple_paths(program, consumer.node, "output")
    )
    return min((sum(name in mixing for name in path[1:]) for path in paths), default=0)


def test_a_chain_counts_down() -> None:
    graph = trace(resolve("vgg19", width=3), torch.zeros(2, 3, 32, 32))
    above = layers_above(graph)
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
    above = layers_above(graph)
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
