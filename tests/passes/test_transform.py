"""Splits and prunes on whole networks, in float64, against the untouched network and brute force."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from morphir.analysis.spaces import analyse
from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.ir.trace import trace_program
from morphir.morphisms.base import Child, Morphism
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.seeds import resolve
from passes.morph_channels import MorphChannels, PruneChannels, SplitChannels
from passes.transform import replay, transform


def randomised(model: nn.Module) -> nn.Module:
    """Non-trivial batch-norm statistics and affine maps, so that nothing is exact by accident."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, mean=0.5, std=0.3)
    return model


def network(name: str, width: int = 4) -> tuple[Graph, torch.Tensor]:
    model = resolve(name, width=width, in_channels=3, classes=5, image_size=32)
    inputs = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    return trace(randomised(model.double()).eval(), inputs), inputs


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.abs().max() > 1e-3, "a network that is zero everywhere tests nothing"
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def growable(graph: Graph) -> Iterator[str]:
    return (name for name, space in graph.spaces.items() if space.verdicts[0].kind == "exact")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ["vgg19", "mobilenetv1", "resnet20"])
def test_split_at_zero_keeps_the_function_in_every_space(name: str, training: bool) -> None:
    graph, inputs = network(name)
    graph.train(training)
    with torch.no_grad():
        expected = copy.deepcopy(graph)(inputs)
        names = list(growable(graph))
        for space in names:
            grown = copy.deepcopy(graph)
            width = graph.spaces[space].width
            transform(grown, [Split(space, 0), Split(space, width - 1)])
            assert grown.spaces[space].width == width + 2
            assert relative(grown(inputs), expected) < 1e-10
    assert len(names) >= 10


@pytest.mark.parametrize("name", ["vgg19", "mobilenetv1"])
def test_paper_networks_have_one_space_for_every_dense_convolution(name: str) -> None:
    graph, _ = network(name)
    dense = [
        path
        for path, module in graph.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.in_channels > 0
    ]
    assert list(growable(graph)) == dense
    assert [name for name in graph.spaces if name not in dense] == ["classifier"]
    assert graph.spaces["classifier"].verdict(0).code == "model-output"


class TwoLayers(nn.Module):
    """conv -> batch norm -> relu -> pool -> flatten (C, H, W) -> linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 7)
        self.out = nn.Linear(7, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.norm(self.conv(x))), 2)
        return self.out(torch.tanh(self.head(x.view(-1, 4 * 16))))


def two_layers() -> tuple[Graph, torch.Tensor]:
    inputs = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    return trace(randomised(TwoLayers().double()).eval(), inputs), inputs


def test_split_with_theta_is_the_papers_expanded_network() -> None:
    graph, inputs = two_layers()
    theta = torch.randn(3, 3, 3, dtype=torch.float64)
    kernel, norm, head = graph.conv.weight.detach(), copy.deepcopy(graph.norm), graph.head.weight.detach()
    bias = graph.conv.bias.detach()
    with torch.no_grad():
        y = functional.conv2d(inputs, kernel, bias, padding=1)
        delta = functional.conv2d(inputs, theta[None], padding=1)[:, 0]

        def region(values: torch.Tensor) -> torch.Tensor:
            return functional.max_pool2d(norm(values).relu(), 2)

        plus, minus = y.clone(), y.clone()
        plus[:, 2] += delta
        minus[:, 2] -= delta
        change = (region(plus) + region(minus)) / 2 - region(y)
        z = functional.linear(region(y).flatten(1) + change.flatten(1), head, graph.head.bias)
        expected = graph.out(z.tanh())
        transform(graph, [Split("conv", 2, {"conv.weight": theta})])
        assert relative(graph(inputs), expected) < 1e-12
    assert graph.conv.weight.shape == (5, 3, 3, 3)
    assert torch.equal(graph.conv.weight[2], kernel[2] + theta)
    assert torch.equal(graph.conv.weight[3], kernel[2] - theta)
    assert torch.equal(graph.head.weight[:, 32:48], head[:, 32:48] / 2)
    assert torch.equal(graph.head.weight[:, 48:64], head[:, 32:48] / 2)
    assert graph.conv.out_channels == 5 and graph.norm.num_features == 5 and graph.head.in_features == 80


def test_theta_of_one_space_follows_the_split_of_another() -> None:
    """One parameter is producer of one space and consumer of another: both maps apply to weight and theta."""
    graph, inputs = two_layers()
    theta = torch.randn(64, dtype=torch.float64)
    alone = copy.deepcopy(graph)
    transform(alone, [Split("head", 3, {"head.weight": theta})])
    transform(graph, [Split("conv", 1), Split("head", 3, {"head.weight": theta})])
    with torch.no_grad():
        assert relative(graph(inputs), alone(inputs)) < 1e-12


@pytest.mark.parametrize("name", ["vgg19", "mobilenetv1", "resnet20"])
def test_prune_is_the_network_without_the_groups_contribution(name: str) -> None:
    graph, inputs = network(name)
    for space_name in list(growable(graph))[::4]:
        space, zeroed, pruned = graph.spaces[space_name], copy.deepcopy(graph), copy.deepcopy(graph)
        with torch.no_grad():
            for binding in space.bindings:
                if binding.role == "consumer":
                    columns = [i for i, group in enumerate(binding.groups) if group == 1]
                    weight = zeroed.get_parameter(binding.parameter)
                    weight.index_fill_(binding.axis, torch.tensor(columns), 0.0)
            transform(pruned, [Prune(space_name, 1)])
            assert relative(pruned(inputs), zeroed(inputs)) < 1e-10
        assert pruned.spaces[space_name].width == space.width - 1


def test_delta_parameters_is_the_real_change() -> None:
    graph, _ = network("mobilenetv1")
    before = sum(p.numel() for p in graph.parameters())
    result = transform(graph, [Split("features.0", 1), Split("features.4.3", 0), Prune("features.5.3", 2)])
    assert result.delta_parameters == sum(p.numel() for p in graph.parameters()) - before
    # By hand, at width 4 in every space: a stem split, a block split, a block prune.
    stem = 3 * 9 + 2 + (9 + 2) + 4
    block = 4 + 2 + (9 + 2)
    assert result.delta_parameters == stem + (block + 4 - 1) - (5 + 2 + (9 + 2) + 4 - 1) - 1 + 1


def test_indices_refer_to_the_graph_as_it_was() -> None:
    graph, inputs = two_layers()
    kernel = graph.conv.weight.detach().clone()
    result = transform(graph, [Prune("conv", 3), Split("conv", 0), Prune("conv", 1)])
    assert [str(m) for m in result.index_maps] == ["conv: 4 -> 5 [0+ 0- 1 2 3]", "conv: 5 -> 3 [0 1 3]"]
    assert torch.equal(graph.conv.weight, kernel[[0, 0, 2]])
    assert graph(inputs).shape == (5, 2)
    assert [remark.code for remark in result.remarks] == ["split", "prune", "prune"]


def test_history_replays_on_a_fresh_model() -> None:
    torch.manual_seed(1)
    model = randomised(TwoLayers().double()).eval()
    inputs = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    graph, fresh = trace(model, inputs), trace(model, inputs)
    transform(graph, [Split("conv", 1, {"conv.weight": torch.randn(3, 3, 3, dtype=torch.float64)})])
    transform(graph, [Prune("head", 0), Split("conv", 4)])
    records = [(r.to_json(), r.tensors()) for r in graph.history]
    replay(fresh, [type(graph.history[0]).from_json(data, tensors) for data, tensors in records])
    assert fresh.state_dict().keys() == graph.state_dict().keys()
    assert all(torch.equal(fresh.state_dict()[key], value) for key, value in graph.state_dict().items())
    assert [str(r) for r in fresh.history] == [str(r) for r in graph.history]


@pytest.mark.parametrize(
    ("morphisms", "message"),
    [
        ([Split("conv", 0), Prune("conv", 0)], "named twice"),
        ([Split("nowhere", 0)], "no channel space 'nowhere'"),
        ([Split("conv", 4)], "no channel group 4"),
        ([Split("conv", -1)], "no channel group -1"),
        ([Prune("conv", i) for i in range(4)], "would leave nothing"),
        ([Split("out", 0)], "frozen .channel of a model output"),
        ([Split("conv", 0, {"head.weight": torch.zeros(64)})], "no producer of this space"),
        ([Prune("head", 0), Split("conv", 0, {"conv.weight": torch.zeros(3, 3)})], "has shape"),
    ],
)
def test_an_illegal_request_changes_nothing(morphisms: list[Split | Prune], message: str) -> None:
    graph, inputs = two_layers()
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1, momentum=0.9)
    graph(inputs).sum().backward()
    optimizer.step()
    before, code, held = copy.deepcopy(graph.state_dict()), graph.code, optimizer.param_groups[0]["params"][:]
    with pytest.raises(MorphirError, match=message):
        transform(graph, morphisms, optimizer)
    after = graph.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert graph.code == code and graph.history == ()
    assert all(a is b for a, b in zip(held, optimizer.param_groups[0]["params"], strict=True))
    assert set(optimizer.state) == set(graph.parameters())


def test_an_optimizer_of_another_model_is_refused() -> None:
    graph, _ = two_layers()
    other = torch.optim.SGD(TwoLayers().parameters(), lr=0.1)
    with pytest.raises(MorphirError, match="holds no parameter of this graph"):
        transform(graph, [Split("conv", 0)], other)


@fx.wrap
def halves_joined(x: torch.Tensor) -> torch.Tensor:
    """Kept whole by fx, so that nothing in it can be rewritten; follows an even number of channels alone."""
    return x.view(-1, 2 * (x.size(1) // 2))


class KeptWhole(nn.Module):
    """A program that follows some rewrites only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(halves_joined(self.conv(x).mean((2, 3))))


def test_a_program_that_does_not_follow_is_refused_and_restored() -> None:
    inputs = torch.randn(2, 3, 5, 5)
    graph = trace_program(KeptWhole().eval(), inputs)
    graph.attach(analyse(graph))  # without the trial that would have frozen the space
    expected, code = graph(inputs), graph.code
    with pytest.raises(MorphirError, match="does not follow the rewrite") as caught:
        transform(graph, [Split("conv", 0)])
    assert (caught.value.code, caught.value.node) == ("does-not-follow", "halves_joined")
    assert torch.equal(graph(inputs), expected) and graph.code == code
    assert graph.spaces["conv"].width == 4 and graph.conv.out_channels == 4
    transform(graph, [Split("conv", 0), Split("conv", 1)])
    torch.testing.assert_close(graph(inputs), expected)


def test_a_graph_cast_after_tracing_still_rewrites() -> None:
    graph = trace(randomised(TwoLayers()).eval(), torch.randn(5, 3, 8, 8)).double()
    inputs = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = graph(inputs)
        transform(graph, [Split("conv", 0)])
        assert relative(graph(inputs), expected) < 1e-12


@pytest.mark.parametrize(
    "morphisms",
    [Split("0", 0), ["split 0[0]"], [Split("0", 1.0)], [Split("0", True)], None],  # type: ignore[arg-type]
)
def test_what_is_no_list_of_morphisms_is_refused(morphisms: Any) -> None:
    with pytest.raises(MorphirError, match="expected morphisms"):
        transform(two_layers()[0], morphisms)


@pytest.mark.parametrize("theta", [torch.zeros(3), {"0.weight": [0.0]}])
def test_a_theta_that_is_no_dict_of_tensors_is_refused(theta: Any) -> None:
    graph, _ = two_layers()
    name = next(iter(graph.spaces))
    with pytest.raises(MorphirError, match="no dict of tensors"):
        transform(graph, [Split(name, 0, theta)])


def test_a_model_is_refused_where_a_graph_is_wanted() -> None:
    with pytest.raises(MorphirError, match="expected a morphir"):
        transform(nn.Linear(2, 2), [])  # type: ignore[arg-type]


def test_a_parameter_shared_by_two_modules_shapes_both() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 2)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.a(x).relu() + self.b(2 * x).sigmoid())

    inputs = torch.randn(3, 5, dtype=torch.float64)
    graph = trace(Shared().double(), inputs)
    before = graph(inputs)
    transform(graph, [Split("a", 0)])
    assert graph.b.weight is graph.a.weight
    assert graph.b.out_features == 7
    assert relative(graph(inputs), before) < 1e-10


@pytest.mark.parametrize("index", [np.int64(2), np.uint8(2), torch.tensor(2)])
def test_an_index_may_be_anybodys_integer(index: Any) -> None:
    graph, _ = two_layers()
    transform(graph, [Prune("conv", index)])
    expected, _ = two_layers()
    transform(expected, [Prune("conv", 2)])
    assert str(graph.history[0]) == str(expected.history[0])
    assert graph.history[0].morphisms == ("prune conv[2]",)


@pytest.mark.parametrize("rewrites", [["x"], None])
def test_what_is_no_history_is_not_replayed(rewrites: Any) -> None:
    graph, _ = two_layers()
    with pytest.raises(MorphirError, match="expected recorded rewrites"):
        replay(graph, rewrites)
    with pytest.raises(MorphirError, match="the optimizer is a str"):
        replay(graph, [], "sgd")  # type: ignore[arg-type]
    with pytest.raises(MorphirError, match=r"expected a morphir\.Graph, got Linear"):
        replay(nn.Linear(2, 2), [])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Triple(Split):
    """Three channels for one, which compute the same together."""

    kind: ClassVar[str] = "triple"
    done: ClassVar[str] = "made three"
    children: ClassVar[tuple[Child, ...]] = (Child(1 / 3, 0),) * 3


@dataclass(frozen=True)
class TripleChannels(MorphChannels):
    name: ClassVar[str] = "triple-channels"
    morphism: ClassVar[type[Morphism]] = Triple


def test_a_morphism_that_no_pass_applies_is_refused() -> None:
    graph, _ = two_layers()
    before = graph.graph, graph.channels, graph.history
    message = "no pass applies the morphism Triple of conv\\[1\\]\n.*known kinds are split, prune; .*PASSES"
    with pytest.raises(MorphirError, match=message):
        transform(graph, [Split("conv", 0), Triple("conv", 1)])
    with pytest.raises(MorphirError, match="no pass applies the morphism Morphism of conv"):
        transform(graph, [Morphism("conv", 1)])
    assert before == (graph.graph, graph.channels, graph.history)


def test_a_new_morphism_takes_a_declaration_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """All indices are those before the call, whichever pass comes first."""
    graph, inputs = two_layers()
    kernel, pruned = graph.conv.weight.detach(), two_layers()[0]
    pruned.load_state_dict(graph.state_dict())
    transform(pruned, [Prune("conv", 2)])
    table = {"split": SplitChannels, "triple": TripleChannels, "prune": PruneChannels}
    monkeypatch.setattr("passes.transform.PASSES", table)
    result = transform(graph, [Prune("conv", 2), Triple("conv", 1), Split("conv", 0)])
    assert [rewrite.name for rewrite in result.rewrites] == [
        "split-channels",
        "triple-channels",
        "prune-channels",
    ]
    assert [remark.message for remark in result.remarks] == ["split in two", "made three", "pruned"]
    assert torch.equal(graph.conv.weight, kernel[[0, 0, 1, 1, 1, 3]])
    assert relative(graph(inputs), pruned(inputs)) < 1e-12
