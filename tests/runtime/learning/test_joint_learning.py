"""Joint morphisms from end to end: learned and applied on residual, gated, shuffled and dense networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from morphir.analysis.tracing import trace
from morphir.ir.graph import Graph
from morphir.morphisms.split import Split
from morphir.runtime.learning.learner import Learner
from morphir.runtime.oracle.subjects import randomise_norms
from passes.transform import transform

CLASSES = 4


def _conv_norm(inputs: int, outputs: int, size: int = 3, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Network(nn.Module):
    """A stem, something between, and a linear head on the mean of every channel."""

    def __init__(self, width: int, between: nn.Module, end: int) -> None:
        super().__init__()
        self.stem = _conv_norm(3, width)
        self.between = between
        self.head = nn.Linear(end, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.between(torch.relu(self.stem(x)))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = _conv_norm(inputs, outputs), _conv_norm(outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else _conv_norm(inputs, outputs, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))


class SqueezeExcite(nn.Module):
    """An inverted bottleneck with a gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand, self.depthwise = (
            _conv_norm(width, 2 * width, 1),
            _conv_norm(2 * width, 2 * width, 3, 2 * width),
        )
        self.squeeze, self.excite = nn.Conv2d(2 * width, 3, 1), nn.Conv2d(3, 2 * width, 1)
        self.project = _conv_norm(2 * width, width, 1)
        self.silu = nn.SiLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.silu(self.depthwise(self.silu(self.expand(x))))
        gate = self.excite(self.silu(self.squeeze(functional.adaptive_avg_pool2d(inner, 1))))
        return x + self.project(inner * torch.sigmoid(gate))


class Shuffle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.depthwise = _conv_norm(width // 2, 4, 1), _conv_norm(4, 4, 3, 4)
        self.second = _conv_norm(4, width // 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, changed = x.chunk(2, dim=1)
        changed = torch.relu(self.second(self.depthwise(torch.relu(self.first(changed)))))
        x = torch.cat((kept, changed), dim=1)
        b, c, h, w = x.size()
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class Dense(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(width + 3 * i) for i in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(width + 3 * i, 3, 3, padding=1) for i in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        return torch.relu(self.norms[2](x))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Network(4, nn.Sequential(Residual(4, 4), Residual(4, 6), Residual(6, 6)), 6),
    "squeeze-excite": lambda: Network(4, nn.Sequential(SqueezeExcite(4), SqueezeExcite(4)), 4),
    "shuffle": lambda: Network(8, nn.Sequential(Shuffle(8), Shuffle(8)), 8),
    "dense": lambda: Network(4, Dense(4), 10),
}


def _graph(name: str, dtype: torch.dtype = torch.float64) -> Graph:
    graph = trace(NETWORKS[name]().to(dtype).eval(), torch.zeros(2, 3, 6, 6, dtype=dtype))
    randomise_norms(graph, 0)
    return graph


def _batch(samples: int = 16, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, 3, 6, 6, dtype=dtype), torch.randint(0, CLASSES, (samples,))


def _losses(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def _splits(learner: Learner) -> dict[Split, float]:
    return {s.morphism: s.delta_loss for s in learner.scores() if isinstance(s.morphism, Split)}


class _Consumers(fx.Interpreter):
    """Runs a graph; every consumer's z is kept, and the given one goes on in its place."""

    def __init__(self, graph: Graph, clean: dict[str, torch.Tensor], names: set[str]) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.clean, self.names, self.z = clean, names, dict[str, torch.Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        for source in n.all_input_nodes:
            if isinstance(self.env[source], torch.Tensor):
                self.env[source] = self.env[source].clone()
        result = super().run_node(n)
        if n.name not in self.names:
            return result
        self.z[n.name] = result
        return self.clean.get(n.name, result)


@pytest.mark.parametrize("curvature", ["batch", "mixed"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_learning_lowers_the_summed_estimate(name: str, curvature: str) -> None:
    learner = Learner(_graph(name), _losses, ema=1.0, learn_curvature=curvature)
    assert not learner.refused
    batch, sums = _batch(), list[float]()
    for _ in range(30):
        learner.step(*batch)
        sums.append(sum(_splits(learner).values()))
    assert sums[-1] < sums[10] < min(0.0, sums[0])


@pytest.mark.parametrize("name", list(NETWORKS))
def test_an_applied_split_changes_z_as_the_learner_said(name: str) -> None:
    """Summed over all consumers of the space, (z after - z before) . g_z is q, with z of the real rewrite."""
    graph, (images, labels) = _graph(name), _batch()
    learner = Learner(graph, _losses, ema=1.0, learn_curvature="batch", score_curvature="batch", lr=0.0)
    learner.step(images, labels)
    visible = 0
    for split, delta_loss in _splits(learner).items():
        space = graph.space(split.space)
        names = {consumer.node for consumer in space.consumers}
        before = _Consumers(graph, {}, names)
        losses = _losses(before.run(images), labels)
        gradients = torch.autograd.grad(losses.sum(), list(before.z.values()))
        clean = {key: z.detach() for key, z in before.z.items()}
        grown = copy.deepcopy(graph)
        transform(grown, [split])
        after = _Consumers(grown.eval(), clean, names)
        with torch.no_grad():
            after.run(images)
        q = sum(
            ((after.z[key] - clean[key]) * g).flatten(1).sum(1)
            for key, g in zip(clean, gradients, strict=True)
        )
        assert isinstance(q, torch.Tensor)
        expected = (q + q**2 / (4 * losses.mean())).mean().detach()
        bound = 1e-14 * sum(
            float((z.abs() * g.abs()).sum()) for z, g in zip(clean.values(), gradients, strict=True)
        )
        torch.testing.assert_close(torch.tensor(delta_loss).double(), expected, rtol=1e-6, atol=bound)
        visible += abs(float(expected)) > 1e6 * bound
    assert visible >= 5


@pytest.mark.parametrize("name", list(NETWORKS))
def test_learned_splits_lower_the_loss(name: str) -> None:
    """The best split of each space, applied alone; estimates have no third order, so in sum."""
    graph, (images, labels) = _graph(name), _batch(64)
    learner = Learner(graph, _losses, ema=1.0, learn_curvature="mixed", score_curvature="mixed")
    for _ in range(30):
        learner.step(images, labels)
    found = _splits(learner)
    best = [
        min((s for s in found if s.space == space), key=found.__getitem__)
        for space in {s.space for s in found}
    ]
    before = _losses(graph(images), labels).mean().item()
    changes = list[float]()
    for split in best:
        grown = copy.deepcopy(graph)
        transform(grown, [split])
        changes.append(_losses(grown.eval()(images), labels).mean().item() - before)
    assert sum(changes) < 0.25 * sum(found[split] for split in best) < 0


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_step_reads_nothing_back(name: str, no_host_reads: AbstractContextManager[Any]) -> None:
    learner = Learner(_graph(name), functional.cross_entropy, learn_curvature="mixed")
    batch = _batch()
    with no_host_reads:
        learner.step(*batch)
        learner.step(*batch)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_tensor_of_a_step_is_on_the_graphs_device(name: str) -> None:
    learner = Learner(_graph(name, torch.float32).to("meta"), functional.cross_entropy)
    images, labels = _batch(dtype=torch.float32)
    result = learner.step(images.to("meta"), labels.to("meta"))
    state = [
        value for value in learner.state_dict().values() if isinstance(value, torch.Tensor) and value.dim()
    ]
    assert {value.device.type for value in (*state, result.loss)} == {"meta"}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_autocast_and_channels_last(name: str, round_scores: Callable[..., dict[str, Any]]) -> None:
    found = round_scores(_graph(name, torch.float32), _batch(dtype=torch.float32))
    found["prune"].assert_close(roundings=4, rank=0.99, large=len(found["prune"].expected) // 2)
    found["split"].assert_close(roundings=1.5, rank=0.85, large=3)
