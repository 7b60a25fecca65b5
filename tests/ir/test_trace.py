"""Tracing: the user's line on every node and in every error, both modes, the model's own keys."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.cost import cost
from morphir.analysis.explain import explain
from morphir.analysis.tracing import trace
from morphir.errors import MorphirError, MorphirWarning, TraceError
from morphir.ir.printer import print_graph
from morphir.ir.source import source_of
from morphir.ir.verify import verify


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 64)
        self.two = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.dropout(self.one(x), 0.5, self.training))


@pytest.mark.parametrize("training", [True, False])
def test_functional_dropout_follows_the_graphs_own_mode(training: bool) -> None:
    model, x = Dropping().train(training), torch.randn(3, 4)
    graph = trace(model, x)
    assert graph.training is training
    graph.eval()
    torch.testing.assert_close(graph(x), model.eval()(x), rtol=0, atol=0)
    graph.train()
    model.train()
    torch.manual_seed(7)
    mine = graph(x)
    torch.manual_seed(7)
    torch.testing.assert_close(mine, model(x), rtol=0, atol=0)
    assert not torch.equal(mine, graph(x))


def test_functional_batch_norm_follows_the_graphs_own_mode() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("mean", torch.randn(4))
            self.register_buffer("var", torch.rand(4) + 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(self.conv(x), self.mean, self.var, training=self.training).flatten(1)

    model, x = Normed().eval(), torch.randn(2, 3, 4, 4)
    graph = trace(model, x)
    torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(graph.train()(x), model.train()(x), rtol=0, atol=0)


def test_every_node_knows_the_users_line() -> None:
    graph = trace(Dropping(), torch.randn(2, 4))
    line = Dropping.forward.__code__.co_firstlineno + 1
    for node in graph.graph.nodes:
        if node.op in {"call_module", "call_function"}:
            source = source_of(node)
            assert source is not None
            assert (source.file, source.line) == (__file__, line)


def test_the_model_is_copied_and_its_keys_stay() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(4, 3)
            self.unused = nn.BatchNorm1d(7)
            self.bare = nn.Parameter(torch.randn(3))
            self.idle = nn.Parameter(torch.randn(5))
            self.plain = torch.ones(3)
            self.register_buffer("temporary", torch.ones(3), persistent=False)
            self.register_buffer("kept", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) * self.bare + self.plain + self.temporary * self.kept + torch.ones(3)

    model = Odd()
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, torch.randn(2, 4))
    for candidate in (graph, copy.deepcopy(graph)):
        assert set(candidate.state_dict()) == set(before)
        candidate.load_state_dict(before)
    with torch.no_grad():
        graph.used.weight.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_copied_graph_shares_nothing_and_computes_the_same() -> None:
    graph = trace(Dropping().eval(), torch.randn(2, 4))
    clone, x = copy.deepcopy(graph), torch.randn(3, 4)
    torch.testing.assert_close(clone(x), graph(x), rtol=0, atol=0)
    assert clone.spaces == graph.spaces
    mine = {p.untyped_storage().data_ptr() for p in graph.parameters()}
    assert mine.isdisjoint(p.untyped_storage().data_ptr() for p in clone.parameters())


def test_shared_parameters_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 4)
            self.two = nn.Linear(3, 4)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.two(x)

    graph = trace(Tied(), torch.randn(2, 3))
    assert graph.one.weight is graph.two.weight
    assert set(graph.state_dict()) == set(Tied().state_dict())


def test_inputs_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, image: Tensor, scale: Tensor, factor: float = 2.0) -> Tensor:
            return self.fc(image) * scale * factor

    inputs = {"scale": torch.randn(3, 1), "image": torch.randn(3, 4)}
    model = Two()
    graph = trace(model, inputs)
    torch.testing.assert_close(graph(**inputs), model(**inputs), rtol=0, atol=0)
    pair = (inputs["image"], inputs["scale"])
    torch.testing.assert_close(trace(model, pair)(*pair), model(*pair), rtol=0, atol=0)


def test_outputs_may_be_a_dict() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.fc(x)}

    graph = trace(Heads(), torch.randn(2, 4))
    assert set(graph(torch.randn(5, 4))) == {"logits"}
    assert graph.spaces["fc"].verdict(0).code == "model-output"


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.view(7, 11)


def test_control_flow_on_values_names_the_users_line() -> None:
    with pytest.raises(TraceError, match="cannot trace Branching") as caught:
        trace(Branching(), torch.randn(2, 4))
    assert caught.value.source == f"test_trace.py:{Branching.forward.__code__.co_firstlineno + 1}"
    assert caught.value.hint is not None


def test_a_failing_program_names_the_node_and_the_users_line() -> None:
    with pytest.raises(TraceError, match="fails on the example inputs") as caught:
        trace(Failing(), torch.randn(2, 3, 8, 8))
    assert caught.value.node == "view"
    assert caught.value.source == f"test_trace.py:{Failing.forward.__code__.co_firstlineno + 2}"


def test_inputs_of_another_shape_name_the_first_layer() -> None:
    with pytest.raises(TraceError) as caught:
        trace(Failing(), torch.randn(2, 1, 8, 8))
    assert caught.value.node == "conv"


@pytest.mark.parametrize("inputs", [{"y": torch.randn(2, 4)}, (torch.randn(2, 4), torch.randn(2, 4)), {}])
def test_wrong_arguments_are_named(inputs: object) -> None:
    with pytest.raises(TraceError, match=r"the model takes \(x\)"):
        trace(Dropping(), inputs)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(MorphirError, match="expected an nn.Module, got function"):
        trace(lambda x: x, torch.randn(1))


def test_an_unknown_node_is_named() -> None:
    graph = trace(Dropping(), torch.randn(2, 4))
    assert [graph.node(node.name) for node in graph.graph.nodes] == list(graph.graph.nodes)
    with pytest.raises(MorphirError, match="no node 'twoo'\n.*did you mean two\\? .*print_graph"):
        graph.node("twoo")


def test_an_unknown_space_or_group_is_named() -> None:
    graph = trace(Dropping(), torch.randn(2, 4))
    with pytest.raises(MorphirError, match="no channel space 'three'.*\n.*one, two"):
        graph.space("three")
    with pytest.raises(MorphirError, match=r"'two' has no channel group 2\n.*0 to 1"):
        graph.space("two").verdict(2)
    for index in ("a", 1.5, None, True):
        with pytest.raises(MorphirError, match=f"'two' has no channel group {index!r}\n.*0 to 1"):
            graph.space("two").verdict(index)  # type: ignore[arg-type]
        if index is not None:
            with pytest.raises(MorphirError, match=f"no channel group {index!r}"):
                explain(graph, "two", index)  # type: ignore[arg-type]
    assert graph.space("two").verdict(np.int64(1)) == graph.space("two").verdict(1)


def test_a_graph_is_copied_but_not_pickled(tmp_path: Path) -> None:
    graph = trace(Dropping(), torch.randn(2, 4))
    with pytest.raises(MorphirError, match="a morphir.Graph cannot be pickled\n.*export_pytorch.*state_dict"):
        torch.save(graph, tmp_path / "graph.pt")
    with pytest.raises(MorphirError, match="cannot be pickled"):
        pickle.dumps(graph)
    assert copy.deepcopy([graph])[0].spaces == graph.spaces


@pytest.mark.parametrize("function", [cost, verify, print_graph])
def test_a_model_is_no_graph(function: Callable[[Any], object]) -> None:
    with pytest.raises(MorphirError, match=r"expected a morphir\.Graph, got Dropping\n.*morphir.trace"):
        function(Dropping())


class _WritesThroughAView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        view = h.permute(0, 2, 3, 1)
        view += 1
        return h


def test_a_program_that_fx_traced_wrongly_is_refused() -> None:
    with pytest.raises(TraceError, match="computes something else than _WritesThroughAView"):
        trace(_WritesThroughAView(), torch.randn(2, 3, 4, 4))


def test_a_random_model_is_compared_under_one_seed_and_draws_nothing_from_the_users() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    x = torch.randn(2, 3)
    before = torch.get_rng_state()
    trace(Noisy(), x)
    assert torch.equal(torch.get_rng_state(), before)


def test_example_inputs_that_the_model_writes_into_are_left_alone() -> None:
    x = torch.randn(2, 3)
    before = x.clone()
    trace(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), x)
    assert torch.equal(x, before)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_that_cannot_be_copied_is_a_trace_error() -> None:
    old_style = torch.nn.utils.weight_norm(nn.Linear(3, 2))
    with pytest.raises(TraceError, match="cannot be copied"):
        trace(old_style, torch.randn(2, 3))


class NoisyInTraining(nn.Module):
    """Another program in training mode than in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        if self.training:
            x = x + 1.0
        return x * 2


@pytest.mark.parametrize("training", [True, False])
def test_a_model_of_two_programs_keeps_that_of_evaluation_and_says_so(training: bool) -> None:
    model, x = NoisyInTraining().train(training), torch.randn(3, 4)
    with pytest.warns(MorphirWarning, match=r"other operators in training mode.*test_trace.py:\d+"):
        graph = trace(model, x)
    assert graph.training is training
    assert torch.equal(graph.eval()(x), model.eval()(x))
