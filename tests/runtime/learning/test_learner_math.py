"""The learner's q and theta gradient against computations that share nothing with it: an interpreter and
autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from morphir.analysis.tracing import trace
from morphir.ir.graph import Graph
from morphir.ir.state import frozen, held_tensors, modules_within
from morphir.morphisms.split import Split
from morphir.runtime.learning.curvature import CURVATURES, BatchLosses
from morphir.runtime.learning.estimate import SplitEstimate, estimate_splits
from morphir.runtime.learning.learner import Learner
from morphir.runtime.learning.model_pass import Pass, run_backward, run_forward
from morphir.runtime.learning.programs import SpaceProgram
from morphir.runtime.learning.projection import PlainProjection, edge_values, estimate_prunes
from morphir.runtime.learning.theta import group_kernels
from morphir.seeds import resolve
from passes.transform import transform

Tensors = dict[str, torch.Tensor]


class _Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=True)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect", bias=False)
        self.bn2 = nn.BatchNorm2d(5)
        self.conv3 = nn.Conv2d(5, 6, 3, stride=2)
        self.linear = nn.Linear(6 * 4, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(functional.relu_(self.bn2(self.conv2(x))), 2)
        x = functional.gelu(self.conv3(functional.pad(x, (1, 1, 1, 1))))
        x = x.view(x.size(0), -1)
        return self.head(functional.silu(self.linear(x)))


class _Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.pointwise = nn.Conv2d(4, 5, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(5)
        self.grouped = nn.ConvTranspose2d(5, 6, 2, stride=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn0(self.stem(x)))
        x = functional.relu6(self.bn1(self.depthwise(x)))
        x = functional.relu(self.bn2(self.pointwise(x)))
        return self.head(functional.leaky_relu(self.grouped(x)).mean((2, 3)))


class _Residual(nn.Module):
    """A projected shortcut, an identity shortcut with a tensor that is read and passed on, squeeze and
    excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.projection = nn.Conv2d(4, 6, 1, bias=False)
        self.bnp = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.bn3 = nn.BatchNorm2d(6)
        self.squeeze = nn.Conv2d(6, 2, 1)
        self.excite = nn.Conv2d(2, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(self.bnp(self.projection(x)) + self.bn1(self.conv1(x)))
        x = functional.relu(x + self.bn3(self.conv3(functional.relu(self.conv2(x)))))
        gate = torch.sigmoid(self.excite(functional.silu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(x * gate, 1), 1))


MODELS: dict[str, Callable[[], nn.Module]] = {"chain": _Chain, "depthwise": _Depthwise, "residual": _Residual}


class _Probe(fx.Interpreter):
    """Runs a graph with some nodes' values forced, and something added at some edges."""

    def __init__(self, graph: Graph, forced: Tensors, added: Mapping[tuple[str, str], torch.Tensor]) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.forced = forced
        self.added = added

    def run_node(self, n: fx.Node) -> torch.Tensor:
        if n.name in self.forced:
            return self.forced[n.name]
        own = {tensor: change for (tensor, node), change in self.added.items() if node == n.name}
        before = {m: self.env[m] for m in n.all_input_nodes if m.name in own}
        self.env.update({m: value + own[m.name] for m, value in before.items()})
        result = super().run_node(n)
        self.env.update(before)
        return result

    def values(self, images: torch.Tensor) -> Tensors:
        self.run(images)
        return {node.name: value for node, value in self.env.items()}


@pytest.fixture(params=list(MODELS))
def graph(request: pytest.FixtureRequest) -> Graph:
    return _randomised(MODELS[request.param]())


def _randomised(model: nn.Module, bias: float = 0.0) -> Graph:
    model = model.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, bias, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return trace(model.eval(), torch.zeros(2, 3, 8, 8, dtype=torch.float64))


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.randint(0, 3, (5,))


def _changes(
    graph: Graph, space_name: str, theta: Tensors, images: torch.Tensor
) -> dict[tuple[str, str], torch.Tensor]:
    """u of every edge, by forcing y +- delta at the producers and the clean value at every other mixing
    node."""
    space = graph.spaces[space_name]
    clean = {
        name: v.detach()
        for name, v in _Probe(graph, {}, {}).values(images).items()
        if isinstance(v, torch.Tensor)
    }
    mixing = {c.node for s in graph.spaces.values() for c in s.consumers}
    outputs: list[Tensors] = []
    for sign in (1, -1):
        forced = {name: clean[name] for name in mixing}
        for producer in space.producers:
            module = graph.get_submodule(producer.parameter.removesuffix(".weight"))
            x = clean[graph.node(producer.node).args[0].name]
            zero = torch.func.functional_call(module, {"weight": torch.zeros_like(module.weight)}, x)
            moved = torch.func.functional_call(module, {"weight": theta[producer.parameter]}, x)
            forced[producer.node] = clean[producer.node] + sign * (moved - zero)
        outputs.append(_Probe(graph, forced, {}).values(images))
    return {
        (c.tensor, c.node): (outputs[0][c.tensor] + outputs[1][c.tensor]) / 2 - clean[c.tensor]
        for c in space.consumers
    }


def _edge_gradients(
    graph: Graph, space_name: str, images: torch.Tensor, labels: torch.Tensor
) -> tuple[dict[tuple[str, str], torch.Tensor], torch.Tensor]:
    """The gradient of the summed loss by something added at one edge alone, and the losses."""
    clean = _Probe(graph, {}, {}).values(images)
    edges = [(c.tensor, c.node) for c in graph.spaces[space_name].consumers]
    added = {edge: torch.zeros_like(clean[edge[0]]).requires_grad_() for edge in edges}
    losses = _loss(_Probe(graph, {}, added).values(images)["output"], labels)
    gradients = torch.autograd.grad(losses.sum(), list(added.values()))
    return dict(zip(edges, gradients, strict=True)), losses.detach()


def _sum_groups(product: torch.Tensor, dim: int, groups: tuple[int, ...], width: int) -> torch.Tensor:
    flat = product.movedim(dim, -1).reshape(product.shape[0], -1, product.shape[dim]).sum(1)
    return torch.stack(
        [flat[:, [p for p, g in enumerate(groups) if g == group]].sum(1) for group in range(width)], 1
    )


def _expected_q(
    graph: Graph, space_name: str, theta: Tensors, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    space = graph.spaces[space_name]
    changes = _changes(graph, space_name, theta, images)
    gradients, losses = _edge_gradients(graph, space_name, images, labels)
    q = sum(
        _sum_groups(changes[c.tensor, c.node] * gradients[c.tensor, c.node], c.dim, c.groups, space.width)
        for c in space.consumers
    )
    assert isinstance(q, torch.Tensor)
    return q, losses


def _learnable(graph: Graph) -> list[str]:
    return [name for name, space in graph.spaces.items() if any(v.kind == "exact" for v in space.verdicts)]


def _estimates(
    learner: Learner, batch: tuple[torch.Tensor, torch.Tensor], curvature: str = "batch"
) -> dict[str, tuple[torch.Tensor, SplitEstimate | None]]:
    """Each space's q of the prunes, and its splits' estimate."""
    found: dict[str, tuple[torch.Tensor, SplitEstimate | None]] = {}

    def work(program: SpaceProgram, run: Pass) -> None:
        edges, splits = edge_values(program, run), None
        if program.split is not None:
            thetas = {key: theta.value for key, theta in learner._thetas[program.name].items()}
            project = learner._project[program.name]
            splits = estimate_splits(program.split, project, thetas, edges, run, CURVATURES[curvature])
        prunes = estimate_prunes(edges, run.samples, sampled=False) if splits is None else splits.prunes
        found[program.name] = (prunes.q, splits)

    modules = modules_within(learner.graph)
    with frozen(modules, held_tensors(modules)), torch.no_grad():
        forward = run_forward(learner.lowered, [batch[0]], batch[1], _loss)
        run_backward(forward, learner.lowered, batch[1], torch.Generator(), work)
    return found


@pytest.mark.parametrize(
    ("curvature", "slice_bytes"), [("batch", 1), ("batch", 1 << 20), ("empirical-fisher", 1), ("sample", 1)]
)
def test_projection_and_theta_gradient_against_autograd(
    graph: Graph, curvature: str, slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainProjection, "cpu_slice_bytes", slice_bytes)
    images, labels = _batch()
    learner = Learner(graph, _loss, init_scale=0.5, seed=3)
    assert not learner.refused
    estimates = _estimates(learner, (images, labels), curvature)
    assert {name for name, (_, splits) in estimates.items() if splits} == set(_learnable(graph))
    for name, (_, splits) in estimates.items():
        if splits is None:
            continue
        own = {k: theta.value.detach().clone().requires_grad_() for k, theta in learner._thetas[name].items()}
        q, losses = _expected_q(graph, name, own, images, labels)
        torch.testing.assert_close(splits.splits.q, q.detach(), rtol=1e-9, atol=1e-12)
        assert q.abs().max() > 1e-6
        objective = CURVATURES[curvature].second_order(q, None, BatchLosses(losses.mean(), losses))
        objective = (q + objective).mean(0).sum()
        expected = torch.autograd.grad(objective, list(own.values()))
        for key, gradient in zip(own, expected, strict=True):
            scale = float(gradient.abs().max())
            torch.testing.assert_close(splits.gradients[key], gradient, rtol=1e-9, atol=1e-9 * scale)


def test_prunes_remove_the_channel(graph: Graph) -> None:
    images, labels = _batch()
    for name, (q, _) in _estimates(Learner(graph, _loss), (images, labels)).items():
        space = graph.spaces[name]
        gradients, _ = _edge_gradients(graph, name, images, labels)
        clean = _Probe(graph, {}, {}).values(images)
        expected = sum(
            _sum_groups(-clean[c.tensor] * gradients[c.tensor, c.node], c.dim, c.groups, space.width)
            for c in space.consumers
        )
        torch.testing.assert_close(q, expected, rtol=1e-9, atol=1e-12)


def test_projection_is_the_papers_on_the_chain() -> None:
    """Delta z . g_z, by running both layers again on the expanded channels, one channel at a time."""
    model = _Chain().double().eval()
    graph = trace(model, torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    images, labels = _batch()
    learner = Learner(graph, _loss, init_scale=0.5)
    theta = learner._thetas["conv1"]["conv1.weight"].value.detach()
    _, splits = _estimates(learner, (images, labels))["conv1"]
    assert splits is not None
    found = splits.splits.q
    z = model.conv2(functional.relu(model.bn1(model.conv1(images)))).detach().requires_grad_()
    rest = functional.max_pool2d(functional.relu(model.bn2(z)), 2)
    rest = functional.gelu(model.conv3(functional.pad(rest, (1, 1, 1, 1)))).flatten(1)
    losses = _loss(model.head(functional.silu(model.linear(rest))), labels)
    (gradient,) = torch.autograd.grad(losses.sum(), z)
    for channel in range(4):
        zs = []
        for sign in (1, -1):
            weight = model.conv1.weight.clone()
            weight[channel] += sign * theta[channel]
            y = functional.conv2d(images, weight, model.conv1.bias, padding=1)
            zs.append(model.conv2(functional.relu(model.bn1(y))))
        change = (zs[0] + zs[1]) / 2 - z
        torch.testing.assert_close(
            found[:, channel], (change * gradient).sum((1, 2, 3)).detach(), rtol=1e-9, atol=1e-12
        )


def test_split_carries_the_rows_of_its_group() -> None:
    graph = trace(_Residual(), torch.zeros(2, 3, 8, 8))
    learner = Learner(graph, _loss)
    learner.step(torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4,)))
    splits = {
        (s.morphism.space, s.morphism.index): s.morphism
        for s in learner.scores()
        if isinstance(s.morphism, Split)
    }
    for (name, index), split in splits.items():
        assert split.theta is not None
        for key, kernel in split.theta.items():
            space = graph.spaces[name]
            producer = next(p for p in space.producers if p.parameter == key)
            binding = space.binding(key, producer.out_axis)
            assert binding is not None
            rows = [row for row, group in enumerate(binding.groups) if group == index]
            whole = (
                learner._thetas[name][key].value.detach().index_select(producer.out_axis, torch.tensor(rows))
            )
            torch.testing.assert_close(kernel, whole.squeeze(producer.out_axis), rtol=0, atol=0)


def test_applying_a_split_changes_z_as_the_learner_said(graph: Graph) -> None:
    """(z after - z before) . g_z is q, with z measured on the really rewritten graph."""
    images, labels = _batch()
    learner = Learner(graph, _loss, init_scale=0.5)
    checked = 0
    for name, (_, splits) in _estimates(learner, (images, labels)).items():
        consumers = {consumer.node for consumer in graph.spaces[name].consumers}
        if splits is None or len(consumers) != 1:
            continue
        (node,) = consumers
        z = _Probe(graph, {}, {}).values(images)[node].detach().requires_grad_()
        losses = _loss(_Probe(graph, {node: z}, {}).values(images)["output"], labels)
        (gradient,) = torch.autograd.grad(losses.sum(), z)
        for group in range(graph.spaces[name].width):
            grown = copy.deepcopy(graph)
            transform(grown, [Split(name, group, group_kernels(learner._thetas[name], group))])
            change = _Probe(grown.eval(), {}, {}).values(images)[node] - z
            expected = (change * gradient).flatten(1).sum(1).detach()
            torch.testing.assert_close(splits.splits.q[:, group], expected, rtol=1e-8, atol=1e-11)
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize("name", ["vgg19", "mobilenetv1"])
def test_every_space_of_the_papers_networks(name: str) -> None:
    """One split of each space: the real change of z is the learner's, and q is the literal delta z . g_z."""
    graph = _randomised(resolve(name, width=4, in_channels=3, classes=3, image_size=8), bias=0.5)
    images, labels = _batch()
    learner = Learner(graph, _loss, init_scale=3.0)
    estimates = {
        space: splits for space, (_, splits) in _estimates(learner, (images, labels)).items() if splits
    }
    assert set(estimates) == set(_learnable(graph)) and len(estimates) >= 14
    clean, visible = _Probe(graph, {}, {}).values(images), 0
    for number, (space, splits) in enumerate(estimates.items()):
        (node,) = {consumer.node for consumer in graph.spaces[space].consumers}
        z = clean[node].detach().requires_grad_()
        losses = _loss(_Probe(graph, {node: z}, {}).values(images)["output"], labels)
        (gradient,) = torch.autograd.grad(losses.sum(), z)
        group = number % graph.spaces[space].width
        grown = copy.deepcopy(graph)
        transform(grown, [Split(space, group, group_kernels(learner._thetas[space], group))])
        change = (_Probe(grown, {}, {}).values(images)[node] - z).detach()
        expected = (change * gradient).flatten(1).sum(1)
        # z itself is far larger than its change: what the subtraction loses is a share of |z| |g|.
        bound = 1e-14 * float((z.detach().abs() * gradient.abs()).flatten(1).sum(1).max())
        visible += bool(expected.abs().max() > 1000 * bound)
        torch.testing.assert_close(splits.splits.q[:, group], expected, rtol=1e-8, atol=bound)
    # Where no sample crosses a ReLU's kink, the change is 0 by right; most spaces must show one.
    assert visible >= 10
