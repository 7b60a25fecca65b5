"""Optimizer state follows the chain rule: carried moments equal those accumulated on the grown network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn, optim
from torch.nn import functional

from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.seeds import resolve
from passes.transform import transform

PLANS = {
    "vgg19": [
        Split("features.0", 1),
        Split("features.3", 0),
        Split("features.7", 3),
        Split("features.49", 2),
    ],
    "mobilenetv1": [Split("features.0", 0), Split("features.3.3", 1), Split("features.15.3", 3)],
    "resnet20": [Split("conv1", 1), Split("layer1.0.conv1", 0), Split("layer2.0.conv2", 2)],
}


def accumulate(graph: Graph, optimizer: optim.Optimizer) -> None:
    """Three steps of learning rate 0: the moments grow and the weights stay."""
    generator = torch.Generator().manual_seed(3)
    graph.train()
    for _ in range(3):
        inputs = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
        targets = torch.randint(0, 5, (4,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(graph(inputs), targets).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "amsgrad"])
@pytest.mark.parametrize("name", list(PLANS))
def test_moments_equal_those_accumulated_on_the_grown_network(name: str, kind: str) -> None:
    def optimizer_of(graph: Graph) -> optim.Optimizer:
        if kind == "sgd":
            return optim.SGD(graph.parameters(), lr=0.0, momentum=0.9, nesterov=True)
        if kind == "adamw":
            return optim.AdamW(graph.parameters(), lr=0.0, weight_decay=0.0)
        return optim.Adam(graph.parameters(), lr=0.0, amsgrad=kind == "amsgrad")

    model = resolve(name, width=4, in_channels=3, classes=5, image_size=32).double()
    seed = trace(model, torch.randn(4, 3, 32, 32, dtype=torch.float64))
    grown_first = copy.deepcopy(seed)
    transform(grown_first, PLANS[name])
    reference = optimizer_of(grown_first)
    accumulate(grown_first, reference)

    carried = optimizer_of(seed)
    accumulate(seed, carried)
    transform(seed, PLANS[name], carried)

    assert [id(p) for g in carried.param_groups for p in g["params"]] == [id(p) for p in seed.parameters()]
    assert set(carried.state) == set(seed.parameters())
    for (key, ours), theirs in zip(seed.named_parameters(), grown_first.parameters(), strict=True):
        mine, wanted = carried.state[ours], reference.state[theirs]
        assert mine.keys() == wanted.keys()
        for entry in wanted:
            if isinstance(wanted[entry], torch.Tensor):
                torch.testing.assert_close(
                    mine[entry], wanted[entry], rtol=1e-9, atol=1e-15, msg=f"{key} {entry}"
                )
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-15)


def test_pruned_rows_leave_the_others_moments_alone() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 4, 4))
    optimizer = optim.SGD(graph.parameters(), lr=0.1, momentum=0.9)
    graph(torch.randn(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    before = optimizer.state[graph.get_parameter("0.weight")]["momentum_buffer"].clone()
    transform(graph, [Prune("0", 2)], optimizer)
    after = optimizer.state[graph.get_parameter("0.weight")]["momentum_buffer"]
    assert torch.equal(after, before[[0, 1, 3]])
    optimizer.zero_grad()
    graph(torch.randn(2, 3, 4, 4)).sum().backward()
    weight = graph.get_parameter("0.weight").detach().clone()
    optimizer.step()
    assert not torch.equal(weight, graph.get_parameter("0.weight"))


class Strange(optim.Optimizer):
    """An optimizer that MorphIR has never heard of."""

    def __init__(self, parameters: object) -> None:
        super().__init__(parameters, {})


def test_an_unknown_optimizer_is_refused_by_name() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 4, 4))
    with pytest.raises(MorphirError, match="does not know the state of Strange"):
        transform(graph, [Split("0", 0)], Strange(graph.parameters()))


@pytest.mark.parametrize("kind", [optim.ASGD, optim.Adadelta])
def test_what_is_refused_is_not_listed_as_known(kind: type[optim.Optimizer]) -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 4, 4))
    with pytest.raises(MorphirError) as caught:
        transform(graph, [Split("0", 0)], kind(graph.parameters()))
    assert f"does not know the state of {kind.__name__}" in str(caught.value)
    assert "SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad" in str(caught.value.hint)
    assert "ASGD" not in str(caught.value.hint)


@pytest.mark.parametrize("optimizer", ["sgd", optim.SGD])
def test_what_is_no_optimizer_is_refused(optimizer: object) -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 4, 4))
    with pytest.raises(MorphirError, match=f"the optimizer is a {type(optimizer).__name__}, not a torch"):
        transform(graph, [Split("0", 0)], optimizer)  # type: ignore[arg-type]
    assert graph.history == ()
