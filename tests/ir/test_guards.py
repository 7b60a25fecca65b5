"""Control flow on shapes: the trace follows the example inputs, the program refuses what goes elsewhere."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.tracing import trace
from morphir.analysis.verify import verify_channels
from morphir.errors import GuardError, MorphirError, TraceError
from morphir.ir.example_run import ExampleRun
from morphir.ir.graph import Graph
from morphir.ir.guards import guard
from morphir.ir.printer import print_graph
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from passes.dead_code import EliminateDeadCode
from passes.manager import PassManager
from passes.transform import transform


class Net(nn.Module):
    """Two convolutions around a plain function of what the first yields."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 5, 1)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.middle(self.one(x)).relu()).mean((2, 3))


def traced(middle: Callable[[Tensor], Tensor], *shape: int) -> tuple[Net, Graph]:
    model = Net(middle).eval()
    graph = trace(model, torch.randn(*(shape or (2, 3, 9, 8))))
    verify_channels(graph)
    return model, graph


def guards(graph: Graph) -> list[tuple[object, ...]]:
    """Question, answer and text of every guard."""
    return [node.args[1:4] for node in graph.graph.nodes if node.target is guard]


def agree(model: nn.Module, graph: Graph, *shape: int) -> bool:
    x = torch.randn(*shape)
    return torch.equal(model(x), graph(x))


def pads(x: Tensor) -> Tensor:
    if x.shape[2] % 2:
        x = F.pad(x, (0, 0, 0, 1))
    return x


def turns(x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    return x.transpose(2, 3) if h > w else x


def loops(x: Tensor) -> Tensor:
    for _ in range(x.shape[2] // 4):
        x = x * 2 + 1
    return x


def pools(x: Tensor) -> Tensor:
    while x.size(-1) > 4:
        x = F.max_pool2d(x, 2)
    return x


def takes_an_int(x: Tensor) -> Tensor:
    return x * int(x.shape[-1])


def takes_a_float(x: Tensor) -> Tensor:
    return x * float(x.shape[-1])


def rounds(x: Tensor) -> Tensor:
    return x[..., : round(x.shape[-1] * 0.5)]


def indexes_a_list(x: Tensor) -> Tensor:
    return x * [2.0, 3.0][x.shape[-1] % 2]


def asserts(x: Tensor) -> Tensor:
    assert x.shape[-1] == 8
    return x


def counts_dimensions(x: Tensor) -> Tensor:
    return x + 1 if len(x.shape) == 4 and x.dim() == 4 and x.ndim == 4 else x


def passes_sizes_on(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, *x.shape[2:])


def takes_the_larger(x: Tensor) -> Tensor:
    return x * max(x.shape[2], x.shape[3])


def asks_the_dtype(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 and x.device.type == "cpu" and not x.is_cuda else x.float()


CASES = [
    (pads, [("truth", True, "one.shape[2] % 2")], (2, 3, 8, 8)),
    (turns, [("truth", True, "one.shape[-2:][0] > one.shape[-2:][1]")], (2, 3, 8, 9)),
    (loops, [("value", 2, "one.shape[2] // 4")], (2, 3, 4, 8)),
    (takes_an_int, [("value", 8, "one.shape[-1]")], (2, 3, 9, 7)),
    (takes_a_float, [("value", 8, "one.shape[-1]")], (2, 3, 9, 7)),
    (rounds, [("value", 4.0, "one.shape[-1] * 0.5")], (2, 3, 9, 6)),
    (indexes_a_list, [("value", 0, "one.shape[-1] % 2")], (2, 3, 9, 7)),
    (asserts, [("truth", True, "one.shape[-1] == 8")], (2, 3, 9, 7)),
    (takes_the_larger, [("truth", False, "one.shape[3] > one.shape[2]")], (2, 3, 9, 10)),
]


@pytest.mark.parametrize(("middle", "expected", "other"), CASES)
def test_an_answer_is_followed_and_held(
    middle: Callable[[Tensor], Tensor], expected: list[object], other: tuple[int, ...]
) -> None:
    model, graph = traced(middle)
    assert guards(graph) == expected
    assert agree(model, graph, 2, 3, 9, 8)
    assert agree(model, graph, 5, 3, 9, 8), "no guard is on the batch size"
    line = middle.__code__.co_firstlineno
    with pytest.raises(MorphirError, match="the program was traced where `.*` is .*; here it is") as caught:
        graph(torch.randn(*other))
    assert caught.value.source in {f"test_guards.py:{line + offset}" for offset in (1, 2)}
    assert caught.value.hint is not None


def test_a_while_loop_is_unrolled_as_often_as_the_example_takes() -> None:
    model, graph = traced(pools, 2, 3, 16, 16)
    assert [answer for _, answer, _ in guards(graph)] == [True, True, False]
    assert agree(model, graph, 3, 3, 20, 16)
    with pytest.raises(GuardError, match=r"`max_pool2d_1.size\(-1\) > 4` is false; here it is true"):
        graph(torch.randn(2, 3, 16, 32))


def test_other_sizes_that_take_the_same_path_pass() -> None:
    model, graph = traced(pads)
    for height in (3, 7, 11):
        assert agree(model, graph, 2, 3, height, 5)


def test_the_number_of_dimensions_counts_no_channels() -> None:
    model, graph = traced(counts_dimensions)
    assert {verdict.kind for verdict in graph.spaces["one"].verdicts} == {"exact"}
    assert agree(model, graph, 2, 3, 7, 7)


def test_sizes_passed_on_one_by_one_hold_their_number_alone() -> None:
    model, graph = traced(passes_sizes_on)
    assert guards(graph) == [("length", 2, "one.shape[2:]")]
    assert agree(model, graph, 3, 3, 5, 6)


def test_dtype_and_device_are_held() -> None:
    _, graph = traced(asks_the_dtype)
    with pytest.raises(GuardError, match=r"one.dtype == torch.float32` is true"):
        copy.deepcopy(graph).double()(torch.randn(2, 3, 9, 8, dtype=torch.float64))


def test_numbers_that_are_recorded_leave_no_guard() -> None:
    """torch asks a number whether it is one; that alone binds the program to nothing."""

    def records(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        grid = torch.zeros(n, 1, h, w) + torch.arange(w) + torch.eye(h, w) + torch.full((n, 1, h, 1), 1.0)
        x = torch.reshape(x + grid, (n, c, h * w)) * (1 / math.sqrt(h))
        return F.interpolate(x.view(n, c, h, w), size=(h * 2, w * 2))

    model, graph = traced(records)
    assert guards(graph) == []
    for shape in ((2, 3, 9, 8), (5, 3, 6, 7)):
        assert agree(model, graph, *shape)


@pytest.mark.parametrize("pieces", ["split", "unbind"])
def test_pieces_are_held_to_their_number(pieces: str) -> None:
    def cuts(x: Tensor) -> Tensor:
        a, b = x.split(4, dim=3) if pieces == "split" else x.unflatten(3, (-1, 4)).unbind(3)
        return a + b

    model, graph = traced(cuts)
    assert agree(model, graph, 2, 3, 5, 8)
    with pytest.raises(GuardError, match="is 2; here it is 3"):
        graph(torch.randn(2, 3, 9, 12))


def test_control_flow_on_tensor_values_is_no_question_about_shapes() -> None:
    def branches(x: Tensor) -> Tensor:
        if x.shape[-1] > 1 and x.sum() > 0:
            return x
        return -x

    with pytest.raises(TraceError, match="cannot trace Net") as caught:
        traced(branches)
    assert caught.value.source == f"test_guards.py:{branches.__code__.co_firstlineno + 1}"


@pytest.mark.parametrize("number", ["int", "range", "item"])
def test_numbers_made_of_tensor_values_are_refused(number: str) -> None:
    def counts(x: Tensor) -> Tensor:
        if number == "item":
            return x * int(x.amax().item())
        return x * (int(x.amax()) if number == "int" else len(range(x.amax().long())))  # pyright: ignore

    with pytest.raises(TraceError, match=r"tensor's values|_local_scalar_dense"):
        traced(counts)


def asks_the_number_of_channels(x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] > 4 else x


def test_a_guard_on_channels_freezes_them() -> None:
    _, graph = traced(asks_the_number_of_channels)
    line = asks_the_number_of_channels.__code__.co_firstlineno + 1
    for verdict in graph.spaces["one"].verdicts:
        assert (verdict.kind, verdict.code, verdict.node) == ("frozen", "size-as-value", "guard")
        assert verdict.source is not None
        assert verdict.source.line == line
    with pytest.raises(MorphirError):
        transform(graph, [Split("one", 0)])


def test_an_assertion_of_the_number_of_channels_freezes_them() -> None:
    def checked(x: Tensor) -> Tensor:
        torch._assert(x.size(1) == 8, "eight channels")
        return x

    _, graph = traced(checked)
    assert {verdict.code for verdict in graph.spaces["one"].verdicts} == {"size-as-value"}


class Twin(nn.Module):
    """Adds what it computes to what it computes it from, if that fits."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 1)
        self.two = nn.Conv2d(6, 6, 1)
        self.three = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        y = self.two(x)
        if y.shape == x.shape:
            y = y + x
        return self.three(y)


def test_equal_numbers_of_channels_are_tied_and_not_frozen() -> None:
    model = Twin().eval()
    graph = trace(model, torch.randn(2, 3, 4, 4))
    verdicts = {(verdict.kind, verdict.code) for verdict in graph.spaces["one"].verdicts}
    assert verdicts == {("exact", "")}
    x = torch.randn(2, 3, 4, 4)
    before = graph(x)
    transform(graph, [Split("one", 1), Prune("one", 3)])
    assert graph.one.out_channels == 6
    transform(graph, [Split("one", 0)])
    assert graph(x).shape == before.shape


def test_guards_survive_copies_rewrites_and_passes() -> None:
    model, graph = traced(pads)
    expected = guards(graph)
    transform(graph, [Split("one", 2)])
    PassManager((EliminateDeadCode(),)).run(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    copied = copy.deepcopy(graph)
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(copied(x), model(x), rtol=1e-4, atol=1e-5)
    for candidate in (graph, copied):
        assert guards(candidate) == expected
        verify_channels(candidate)
        with pytest.raises(GuardError):
            candidate(torch.randn(2, 3, 8, 8))


def test_a_guard_in_textual_ir() -> None:
    _, graph = traced(pads)
    line = pads.__code__.co_firstlineno + 1
    assert f"\n  guard bool(%mod) == True      # test_guards.py:{line}\n" in print_graph(graph)


def test_models_without_questions_are_traced_as_before() -> None:
    _, graph = traced(torch.relu)
    assert [node.name for node in graph.graph.nodes] == [
        "x",
        "one",
        "relu",
        "relu_1",
        "two",
        "mean",
        "output",
    ]


def test_types_are_those_of_the_values() -> None:
    def asks(x: Tensor) -> Tensor:
        pieces = [x] if isinstance(x, Tensor) else x
        if isinstance(x.shape, tuple) and isinstance(x.shape[1], int) and not isinstance(x, (list, tuple)):
            return torch.cat(pieces) * 2
        return -x

    model, graph = traced(asks)
    assert guards(graph) == []
    assert agree(model, graph, 3, 3, 4, 5)
    assert {verdict.kind for verdict in graph.spaces["one"].verdicts} == {"exact"}


def test_nothing_runs_for_a_model_that_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for fx's own questions about the types of proxies either: they are asked of every argument."""

    def run(self: ExampleRun, node: object) -> None:
        raise AssertionError(f"{node} is run")

    monkeypatch.setattr(ExampleRun, "value", run)
    _, graph = traced(lambda x: torch.cat([x, F.relu(x)], 1)[:, ::2] + x.mean((2, 3), keepdim=True))
    assert guards(graph) == []
