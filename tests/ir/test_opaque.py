"""Modules that cannot be traced are kept whole: their boundary is frozen, the rest is as free as ever."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.tracing import trace
from morphir.analysis.verify import verify_channels
from morphir.errors import MorphirWarning, TraceError
from morphir.ir.graph import Graph
from morphir.morphisms.split import Split
from morphir.runtime.oracle.oracle import check_graph
from passes.transform import transform


class Branches(nn.Module):
    """Control flow on a tensor's values."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return self.lin(x)
        return x * 2


class Item(nn.Module):
    """A Python number made from a tensor, which fx records and shapes alone do not tell."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.abs().max().item()


class Selects(nn.Module):
    """An output whose shape depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x[x > 0].sum() / x[x > 0].numel()


class Writes(nn.Module):
    """Writes into an item of a view."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 0][:, 0] = 0
        return x


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class StraightThrough(nn.Module):
    """A gradient of its own, which fx would lose without a word."""

    def forward(self, x: Tensor) -> Tensor:
        return Sign.apply(x)  # pyright: ignore


class Net(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.middle = middle
        self.c = nn.Conv2d(8, 6, 3, padding=1)
        self.d = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.b(self.a(x).relu()))
        if x.shape[-1] > 4:
            x = F.max_pool2d(x, 2)
        return self.d(self.c(x).relu()).mean((2, 3))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))  # pyright: ignore


X = torch.randn(4, 3, 8, 8)
MODULES = [
    (Branches, "control flow", Branches, 1),
    (Item, "depends on tensor values", Item, 1),
    (Selects, "depends on tensor values", Selects, 1),
    (Writes, "sees an assignment", Writes, 2),
    (StraightThrough, "Sign has a gradient of its own", StraightThrough, 1),
    (scripted, "ScriptModule", None, 0),
]


def traced(model: nn.Module, message: str) -> Graph:
    with pytest.warns(MorphirWarning, match=message):
        graph = trace(model, X)
    verify_channels(graph)
    return graph


@pytest.mark.parametrize(("make", "reason", "kind", "line"), MODULES)
@pytest.mark.parametrize("training", [True, False])
def test_the_boundary_is_frozen_and_the_rest_is_exact(
    make: Any, reason: str, kind: type[nn.Module] | None, line: int, training: bool
) -> None:
    model = Net(make()).train(training)
    graph = traced(model, f"at 'middle' cannot be traced.*{reason}")
    (call,) = graph.opaque_calls.values()
    assert call.path == "middle"
    if kind is not None:
        assert str(call.failure.source) == f"test_opaque.py:{kind.forward.__code__.co_firstlineno + line}"
    verdicts = {name: (v.kind, v.code, v.node) for name, s in graph.spaces.items() for v in s.verdicts}
    assert verdicts == {
        "a": ("exact", "", None),
        "b": ("frozen", "opaque-module", "middle"),
        "c": ("exact", "", None),
        "d": ("frozen", "model-output", "output"),
    }
    assert "which cannot be traced" in graph.spaces["b"].verdicts[0].reason
    assert graph.spaces["b"].verdicts[0].source is not None
    torch.testing.assert_close(graph.eval()(X), model.eval()(X), rtol=0, atol=0)


@pytest.mark.parametrize("make", [row[0] for row in MODULES])
def test_the_oracle_finds_the_rest_right_and_the_exports_refused_or_right(make: Any) -> None:
    graph = traced(Net(make()), "cannot be traced")
    checks = list(check_graph(graph))
    assert [check for check in checks if check.outcome == "failed"] == []
    found = {(check.check, check.space): check.outcome for check in checks}
    assert found["split", "a"] == found["prune", "a"] == found["split", "c"] == found["plan", None] == "ok"
    assert found["split", "b"] == "refused"
    assert found["export-pytorch", None] == "refused"


def test_its_own_parameters_are_frozen_and_trained() -> None:
    graph = traced(Net(Branches()), "Branches")
    bound = {b.parameter for space in graph.spaces.values() for b in space.bindings}
    assert not any(key.startswith("middle.") for key in bound)
    assert set(graph.state_dict()) == set(Net(Branches()).state_dict())
    graph(X + 5).sum().backward()
    assert graph.get_submodule("middle.lin").weight.requires_grad


def test_a_custom_gradient_stays() -> None:
    model = Net(StraightThrough())
    graph = traced(model, "Sign")
    for module in (model, graph):
        module(X).sum().backward()
    torch.testing.assert_close(graph.a.weight.grad, model.a.weight.grad)
    assert graph.a.weight.grad.abs().max() > 0


def test_several_calls_and_several_modules_are_each_told() -> None:
    class Twice(Net):
        def __init__(self) -> None:
            super().__init__(Branches())
            self.other = nn.Sequential(nn.ReLU(), Branches())

        def forward(self, x: Tensor) -> Tensor:
            x = self.middle(self.other(self.middle(self.a(x))))
            return self.d(self.c(x if x.shape[0] else -x).relu())

    with pytest.warns(MorphirWarning) as caught:
        graph = trace(Twice(), X)
    messages = [str(warning.message) for warning in caught if warning.category is MorphirWarning]
    assert [message.split(" cannot")[0] for message in messages] == [
        "Branches at 'middle'",
        "Branches at 'other.1'",
    ]
    assert [node.name for node in graph.graph.nodes if node.op == "call_module"] == [
        *("a", "middle", "other_0", "other_1", "middle_1", "c", "d"),
    ]
    assert {v.code for v in graph.spaces["a"].verdicts} == {"opaque-module"}


def test_a_model_that_itself_cannot_be_traced_is_an_error_as_ever() -> None:
    with pytest.raises(TraceError, match="torch.fx cannot trace Branches"):
        trace(Branches(), torch.randn(2, 8, 4, 4))
    with pytest.raises(TraceError, match="cannot follow the model on shapes alone") as caught:
        trace(Item(), X)
    assert caught.value.source == f"test_opaque.py:{Item.forward.__code__.co_firstlineno + 1}"


def test_a_module_that_fails_of_its_own_names_the_line_inside_it() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.missing  # pyright: ignore

    with pytest.raises(TraceError, match="fails on the example inputs.*missing") as caught:
        trace(Net(Broken()), X)
    assert caught.value.source == f"test_opaque.py:{Broken.forward.__code__.co_firstlineno + 1}"


def test_results_follow_the_graphs_dtype_and_copies() -> None:
    graph = traced(Net(Branches()), "Branches")
    double = copy.deepcopy(graph).double()
    x = X.double()
    before = double.eval()(x)
    transform(double, [Split("a", 0), Split("c", 3)])
    torch.testing.assert_close(double(x), before, rtol=1e-12, atol=1e-12)
    assert {value.dtype for value in double.channels.values["middle"]} == {torch.float64}


def test_what_an_opaque_module_returns_may_be_nested() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
            return {"both": [x, -x] if x.sum() > 0 else [-x, x]}

    class Uses(Net):
        def forward(self, x: Tensor) -> Tensor:
            left, right = self.middle(self.b(self.a(x).relu()))["both"]
            return self.d(self.c(left + right.abs()))

    model = Uses(Pair()).eval()
    graph = traced(model, "Pair")
    torch.testing.assert_close(graph(X), model(X), rtol=0, atol=0)
    assert {v.code for v in graph.spaces["b"].verdicts} == {"opaque-module"}
    assert {v.kind for v in graph.spaces["c"].verdicts} == {"exact"}
