"""What people pass and return: every kind is traced, rewritten and exported, or refused with the reason."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from morphir.analysis.tracing import trace
from morphir.analysis.verify import verify_channels
from morphir.errors import GuardError, MorphirWarning, TraceError
from morphir.ir.graph import Graph
from morphir.ir.values import tensors
from morphir.runtime.oracle.oracle import check_graph
from morphir.runtime.oracle.zeroing import run_deterministic

Forward = Callable[..., Any]


@dataclass
class Record:
    logits: Tensor
    features: list[Tensor]
    loss: Tensor | None = None


@dataclass
class DictRecord(OrderedDict[str, Tensor]):
    """What transformers return: a dict with attributes."""

    logits: Tensor | None = None
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


class Named(NamedTuple):
    logits: Tensor
    aux: Tensor | None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 5, 1)

    def hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.a(x).relu()
        return a, self.b(a).relu()

    def logits(self, x: Tensor) -> Tensor:
        return self.c(self.hidden(x)[1]).mean((2, 3))


class ReturnsRecord(Net):
    def forward(self, x: Tensor) -> Record:
        a, b = self.hidden(x)
        return Record(self.c(b).mean((2, 3)), [a])


class ReturnsDictRecord(Net):
    def forward(self, x: Tensor) -> DictRecord:
        a, b = self.hidden(x)
        return DictRecord(logits=self.c(b).mean((2, 3)), hidden=a)


class ReturnsNamed(Net):
    def forward(self, x: Tensor) -> Named:
        return Named(self.logits(x), None)


class ReturnsNested(Net):
    def forward(self, x: Tensor) -> dict[str, Any]:
        a, b = self.hidden(x)
        return {"heads": (self.c(b).mean((2, 3)), [a.mean((2, 3)), None])}


class TakesKeywords(Net):
    def forward(self, x: Tensor, scale: float = 2.0, *, mask: Tensor, flag: bool = False) -> Tensor:
        x = x * mask * scale
        return self.logits(-x if flag else x)


class TakesNone(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None, as_dict: bool = True) -> Any:
        if mask is not None:
            x = x * mask
        return {"logits": self.logits(x)} if as_dict else self.logits(x)


class TakesMany(Net):
    def forward(self, first: Tensor, *others: Tensor, **named: Tensor) -> Tensor:
        for other in others:
            first = first + other
        return self.logits(first + named["last"] if "last" in named else first)


class TakesList(Net):
    def forward(self, images: list[Tensor]) -> Tensor:
        return sum((self.logits(image) for image in images), torch.zeros(1))


class TakesDict(Net):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        total = self.logits(batch["left"])
        for name, image in batch.items():
            total = total + self.logits(image) * len(name)
        return total * batch["mask"] if "mask" in batch else total


class NoGrad(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            left, right = self.a(x).relu().chunk(2, 1)
        b = self.b(torch.cat([right, left], 1)).relu()
        return self.c(b * b.detach()).mean((2, 3))


class Bare(Net):
    """Bare parameters, buffers, frozen layers and functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(8))
        self.register_buffer("scale", torch.rand(8))
        self.b.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.a(x).relu(), self.weight, self.bias) * self.scale[None, :, None, None]
        return self.c(self.b(x).relu()).mean((2, 3))


class Shared(Net):
    """One module called twice; two modules of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(8, 8, 1)
        self.tied = nn.Conv2d(8, 8, 1)
        self.tied.weight = self.twice.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.tied(self.twice(self.twice(self.a(x)).relu()))
        return self.c(self.b(x).relu()).mean((2, 3))


X = torch.randn(4, 3, 6, 6)
MASK = torch.rand(4, 1, 6, 6)
EXACT, OUTPUT = ("exact", ""), ("frozen", "model-output")
CASES: list[tuple[type[Net], Any, tuple[str, str]]] = [
    (ReturnsRecord, X, OUTPUT),
    (ReturnsDictRecord, X, OUTPUT),
    (ReturnsNamed, X, EXACT),
    (ReturnsNested, X, OUTPUT),
    (TakesKeywords, {"x": X, "mask": MASK}, EXACT),
    (TakesNone, X, EXACT),
    (TakesNone, (X, MASK, False), EXACT),
    (TakesMany, (X, X * 2, X - 1), EXACT),
    (TakesMany, {"first": X, "last": X * 2}, EXACT),
    (TakesList, ([X, X * 2],), EXACT),
    (TakesDict, ({"left": X, "right": X * 2},), EXACT),
    (NoGrad, X, EXACT),
    (Bare, X, EXACT),
    (Shared, X, EXACT),
]


def call(module: Callable[..., Any], inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def verdicts(graph: Graph, space: str) -> set[tuple[str, str]]:
    return {(verdict.kind, verdict.code) for verdict in graph.spaces[space].verdicts}


@pytest.mark.parametrize(("kind", "inputs", "first"), CASES)
def test_each_kind_is_traced_and_its_outputs_are_frozen(
    kind: type[Net], inputs: Any, first: tuple[str, str]
) -> None:
    model = kind().eval()
    graph = trace(model, inputs)
    verify_channels(graph)
    found, wanted = call(graph, inputs), call(model, inputs)
    assert type(found) is type(wanted)
    assert len(tensors(found)) == len(tensors(wanted))
    for left, right in zip(tensors(found), tensors(wanted), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert (verdicts(graph, "a"), verdicts(graph, "b"), verdicts(graph, "c")) == ({first}, {EXACT}, {OUTPUT})


@pytest.mark.parametrize(("kind", "inputs", "first"), CASES)
def test_the_oracle_proves_each_kind(kind: type[Net], inputs: Any, first: tuple[str, str]) -> None:
    checks = list(check_graph(trace(kind(), inputs)))
    assert [check for check in checks if check.outcome == "failed"] == []
    done = {check.check for check in checks if check.outcome == "ok"}
    assert done >= {"split", "prune", "plan", "export-pytorch", "export-onnx"}


def test_what_is_none_stays_none() -> None:
    graph = trace(TakesNone(), X)
    with pytest.raises(GuardError, match="`mask is None` is true; here it is false"):
        graph(X, MASK)
    with pytest.raises(GuardError, match="`as_dict` is true; here it is false"):
        graph(X, None, False)


def test_dicts_and_lists_are_held_to_their_keys_and_lengths() -> None:
    with pytest.raises(GuardError, match=r"`list\(batch\)` is \['left', 'right'\]; here it is \['left'\]"):
        trace(TakesDict(), ({"left": X, "right": X},))({"left": X})
    with pytest.raises(GuardError, match=r"`len\(images\)` is 2; here it is 3"):
        trace(TakesList(), ([X, X],))([X, X, X])


@pytest.mark.parametrize("inputs", [(X, X), {"x": X, "mask": MASK, "other": X}, (X,)])
def test_inputs_that_the_model_does_not_take_are_named(inputs: Any) -> None:
    with pytest.raises(TraceError, match=r"the model takes \(x, scale, mask, flag\)"):
        trace(TakesKeywords(), inputs)


def test_an_input_left_at_its_default_before_a_required_one_is_a_constant() -> None:
    model = TakesKeywords()
    graph = trace(model, {"x": X, "mask": MASK})
    assert [str(n.target) for n in graph.graph.nodes if n.op == "placeholder"] == ["x", "mask", "flag"]
    torch.testing.assert_close(graph(X, MASK), model(X, mask=MASK), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [NoGrad, Bare, Shared])
def test_gradients_are_the_models(kind: type[Net]) -> None:
    model = kind()
    graph = trace(model, X)
    for module in (model, graph):
        module(X).square().sum().backward()
    mine = dict(graph.named_parameters())
    for name, parameter in model.named_parameters():
        assert mine[name].requires_grad == parameter.requires_grad
        assert (mine[name].grad is None) == (parameter.grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(mine[name].grad, parameter.grad)


class WholeUnderNoGrad(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


def test_a_model_without_gradients_has_none() -> None:
    with torch.no_grad():
        graph = trace(WholeUnderNoGrad(), X)
    assert not graph(X).requires_grad
    assert verdicts(graph, "a") == {EXACT}


class Language(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.one = nn.Linear(8, 6)
        self.two = nn.Linear(6, 8)
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.embedding(tokens)).relu()))


@pytest.mark.parametrize("tied", [False, True])
def test_integer_inputs_are_embedded(tied: bool) -> None:
    graph = trace(Language(tied), torch.randint(0, 11, (4, 7)))
    verify_channels(graph)
    assert verdicts(graph, "embedding") == {("frozen", "tied-parameter") if tied else EXACT}
    assert verdicts(graph, "one") == {EXACT}
    checks = list(check_graph(graph))
    assert [check for check in checks if check.outcome == "failed"] == []


class HoldsAList(Net):
    """Layers in a plain list: no parameters of the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Conv2d(8, 8, 1), nn.ReLU()]

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for layer in self.layers:
            x = layer(x)
        return self.c(self.b(x).relu()).mean((2, 3))


def test_layers_in_a_plain_list_are_constants() -> None:
    model = HoldsAList()
    with pytest.warns(MorphirWarning, match=r"calls a Conv2d that it holds in no nn.Module attribute \("):
        graph = trace(model, X)
    assert set(graph.state_dict()) == set(model.state_dict())
    torch.testing.assert_close(graph(X), model(X), rtol=0, atol=0)
    assert [c for c in check_graph(graph) if c.outcome == "failed"] == []


class Parametrized(Net):
    def __init__(self, parametrize: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.a = parametrize(self.a)  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


@pytest.mark.parametrize("parametrize", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_kernels_are_left_alone(parametrize: Callable[[nn.Module], nn.Module]) -> None:
    model = Parametrized(parametrize).eval()
    graph = trace(model, X)
    verify_channels(graph)
    found = run_deterministic(graph, ((X,), {}), training=False, seed=0)
    torch.testing.assert_close(found, [model(X)], rtol=0, atol=0)
    assert "a" not in graph.spaces
    assert verdicts(graph, "b") == {EXACT}
    bound = [space for space in graph.spaces.values() for b in space.bindings if "parametriz" in b.parameter]
    assert bound and {verdict.kind for space in bound for verdict in space.verdicts} == {"frozen"}
    checks = {check.check: check for check in check_graph(graph)}
    assert checks["plan"].outcome == "ok"
    assert checks["export-pytorch"].outcome == "refused"
    assert "remove_parametrizations" in checks["export-pytorch"].detail
