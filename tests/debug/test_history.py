"""Every change of a graph is numbered, stored and restored bit for bit, forwards and backwards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import morphir
from debug.history_case import splits, traced
from morphir.debug import Instrument, PipelineStopped, Session, StopAfterRewrite, instrumented, recorded
from morphir.errors import ExportError, MorphirError, MorphirWarning
from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite
from morphir.ir.state import named_state
from morphir.runtime.history import recorder as recorder_module
from morphir.runtime.history.recorder import RecordHistory
from morphir.runtime.history.store import HistoryStore
from passes.batch_norm import ReexpressBatchNorm
from passes.dead_code import EliminateDeadCode
from passes.manager import PassManager

Point = tuple[dict[str, torch.Tensor], str]


def point(graph: Graph) -> Point:
    return {k: t.detach().clone() for k, t in graph.state_dict().items()}, morphir.print_graph(graph)


def same(left: Point, right: Point) -> bool:
    return (
        left[1] == right[1]
        and left[0].keys() == right[0].keys()
        and all(torch.equal(left[0][key], right[0][key]) for key in left[0])
    )


class Watching(Instrument):
    """Copies the graph after every rewrite."""

    def __init__(self, graph: Graph) -> None:
        self.points = [point(graph)]

    def after_rewrite(self, graph: Graph, rewrite: Rewrite, seconds: float) -> None:
        self.points.append(point(graph))


def morphisms(graph: Graph, rng: random.Random) -> list[morphir.Split | morphir.Prune]:
    name = rng.choice(["conv1", "conv2"])
    first, second = rng.sample(range(graph.spaces[name].width), 2)
    thetas = {
        p.parameter: torch.randn_like(graph.get_parameter(p.parameter)[0])
        for p in graph.space(name).producers
    }
    return [morphir.Split(name, first, thetas), morphir.Prune(name, second)]


def test_stepping_forward_and_back_over_a_whole_history_is_bit_identical(tmp_path: Path) -> None:
    graph, rng = traced(), random.Random(0)
    watching = Watching(graph)
    with recorded(graph, tmp_path / "history"), instrumented(watching):
        for _ in range(6):
            morphir.transform(graph, morphisms(graph, rng))
    session = Session.open(tmp_path / "history", graph=traced())
    assert session.same_program and session.last == len(watching.points) - 1 == 12
    for number in range(1, 13):
        session.next()
        assert session.position == number and same(point(session.graph), watching.points[number])
    for number in reversed(range(12)):
        session.back()
        assert same(point(session.graph), watching.points[number])
    for number in rng.sample(range(13), 5):
        session.goto(number)
        assert same(point(session.graph), watching.points[number])
    assert [r.number for r in session.graph.history] == list(range(1, session.position + 1))


def test_training_dead_code_and_batch_norm_are_actions_of_their_own(tmp_path: Path) -> None:
    graph, points = traced(), list[Point]()
    with recorded(graph, tmp_path / "history"):
        points.append(point(graph))
        optimizer = torch.optim.SGD(graph.parameters(), lr=0.1)
        graph.train()(torch.randn(4, 3, 8, 8)).sum().backward()
        optimizer.step()
        graph.eval()
        points.append(point(graph))
        result = morphir.transform(graph, [morphir.Split("conv1", 1)], optimizer)
        points.append(point(graph))
        reexpress = ReexpressBatchNorm([torch.randn(4, 3, 8, 8)], result.index_maps)
        PassManager((reexpress, EliminateDeadCode())).run(graph, optimizer)
        points.append(point(graph))
    session = Session.open(tmp_path / "history", graph=traced())
    assert [a.kind for a in session.actions] == ["start", "weights", "rewrite", "weights"]
    assert [a.name for a in session.actions] == [
        "start",
        "training",
        "split-channels",
        "reexpress-batch-norm",
    ]
    assert set(session.actions[3].tensors) == {
        f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")
    }
    for number in (3, 0, 2, 1):
        session.goto(number)
        assert same(point(session.graph), points[number])


def test_values_that_are_written_past_torchs_count_are_recorded_too(tmp_path: Path) -> None:
    graph, points = traced(), list[Point]()
    with recorded(graph, tmp_path / "history"):
        for write in ("in place", "data", "new"):
            bias = graph.get_parameter("head.bias")
            if write == "in place":
                with torch.no_grad():
                    bias.add_(1)
            elif write == "data":
                bias.data.mul_(3)
            else:
                graph.get_submodule("head").bias = torch.nn.Parameter(torch.full((5,), 7.0))
            points.append(point(graph))
            morphir.transform(graph, [morphir.Split("conv1", 0)])
            points.append(point(graph))
        graph.get_parameter("head.bias").data.zero_()
        points.append(point(graph))
    session = Session.open(tmp_path / "history", graph=traced())
    kinds = [action.kind for action in session.actions[1:]]
    assert kinds == ["weights", "rewrite", "weights", "rewrite", "weights", "rewrite", "weights"]
    assert all(action.tensors in {(), ("head.bias",)} for action in session.actions)
    for number, recorded_point in enumerate(points, 1):
        session.goto(number)
        assert same(point(session.graph), recorded_point)


def test_erased_nodes_are_erased_again(tmp_path: Path) -> None:
    class Dead(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            torch.relu(y)
            return y.sum((2, 3))

    def build() -> Graph:
        torch.manual_seed(0)
        return morphir.trace(Dead(), torch.zeros(2, 1, 5, 5))

    graph = build()
    if all(node.users or node.op == "output" for node in graph.graph.nodes):
        pytest.skip("the tracer leaves no dead code")
    with recorded(graph, tmp_path / "history"):
        PassManager((EliminateDeadCode(),)).run(graph)
    session = Session.open(tmp_path / "history", graph=build())
    assert session.next().kind == "program" and session.action.nodes == ("relu",)
    assert morphir.print_graph(session.graph) == morphir.print_graph(graph)
    session.back()
    assert morphir.print_graph(session.graph) == morphir.print_graph(build())


def test_an_action_says_pass_maps_nodes_remarks_and_time(tmp_path: Path) -> None:
    graph = traced()
    before = morphir.print_graph(graph).splitlines()
    with recorded(graph, tmp_path / "history"):
        morphir.transform(graph, [morphir.Split("conv1", 2), morphir.Prune("conv2", 0)])
    split, prune = HistoryStore.read(tmp_path / "history").actions[1:]
    assert (split.name, prune.name) == ("split-channels", "prune-channels")
    assert split.rewrite is not None and str(split.rewrite.maps[0]) == "conv1: 4 -> 5 [0 1 2+ 2- 3]"
    assert split.nodes == ("conv1", "norm", "relu", "conv2")
    (remark,) = split.remarks
    assert (remark.kind, remark.space, remark.index, remark.node) == ("applied", "conv1", 2, "conv1")
    assert str(remark.source).startswith("history_case.py:") and (split.seconds or 0) > 0
    assert any(line.startswith("-  %conv1: ") for line in split.difference)
    assert (
        patched(patched(before, split.difference), prune.difference)
        == morphir.print_graph(graph).splitlines()
    )


def patched(lines: list[str], difference: Sequence[str]) -> list[str]:
    """Applies a unified difference."""
    found, at = list[str](), 0
    for line in difference:
        if line.startswith("@@"):
            start = int(line.split()[1].split(",")[0][1:]) - 1
            found, at = [*found, *lines[at:start]], start
        elif line.startswith("+"):
            found.append(line[1:])
        else:
            assert lines[at] == line[1:]
            found, at = [*found, *([] if line.startswith("-") else [line[1:]])], at + 1
    return [*found, *lines[at:]]


def test_a_history_opens_without_the_model_that_it_was_recorded_of(tmp_path: Path) -> None:
    graph = traced()
    with recorded(graph, tmp_path / "history"):
        PassManager(tuple(splits(5))).run(graph)
    session = Session.open(tmp_path / "history")
    session.goto(session.last)
    assert all(
        torch.equal(a, b)
        for a, b in zip(session.graph.state_dict().values(), graph.state_dict().values(), strict=True)
    )
    assert not any(tmp_path.rglob("*.pkl"))


def test_a_pipeline_that_fails_leaves_no_actions(tmp_path: Path) -> None:
    class Refusing(Instrument):
        def before_pass(self, name: str, graph: Graph) -> None:
            if name == "prune-channels":
                raise MorphirError("no")

    graph = traced()
    with recorded(graph, tmp_path / "history"):
        morphir.transform(graph, [morphir.Split("conv1", 0)])
        with instrumented(Refusing()), pytest.raises(MorphirError, match="no"):
            morphir.transform(graph, [morphir.Split("conv1", 1), morphir.Prune("conv2", 1)])
        morphir.transform(graph, [morphir.Split("conv1", 2)])
    session = Session.open(tmp_path / "history", graph=traced())
    assert [str(a.rewrite.maps[0]).split(" [")[0] for a in session.actions if a.rewrite] == [
        "conv1: 4 -> 5",
        "conv1: 5 -> 6",
    ]
    session.goto(session.last)
    assert same(point(session.graph), point(graph))


def test_stopping_after_a_rewrite_leaves_the_graph_as_it_made_it(tmp_path: Path) -> None:
    graph, whole = traced(), traced()
    PassManager(tuple(splits(3))).run(whole)
    with (
        pytest.raises(PipelineStopped, match="stopped after rewrite #3"),
        instrumented(StopAfterRewrite(3)),
        recorded(graph, tmp_path / "history"),
    ):
        PassManager(tuple(splits(6))).run(graph)
    assert same(point(graph), point(whole))
    assert Session.open(tmp_path / "history", graph=traced()).last == 3


def test_far_points_are_reached_by_keyframes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "KEYFRAME_EVERY", 4)
    graph, rng = traced(), random.Random(1)
    watching = Watching(graph)
    with recorded(graph, tmp_path / "history"), instrumented(watching):
        for _ in range(7):
            morphir.transform(graph, morphisms(graph, rng))
    session = Session.open(tmp_path / "history", graph=traced())
    assert HistoryStore.read(tmp_path / "history").keyframes() == [0, 4, 8, 12]
    for number in (14, 11, 3, 13, 0, 8):
        session.goto(number)
        assert same(point(session.graph), watching.points[number])
        assert [r.number for r in session.graph.history] == list(range(1, number + 1))


def test_few_points_stay_in_memory_and_all_are_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphir.runtime.history.session._SNAPSHOTS", 4)
    graph = traced()
    watching = Watching(graph)
    with recorded(graph, tmp_path / "history"), instrumented(watching):
        PassManager(tuple(splits(8))).run(graph)
    session = Session.open(tmp_path / "history", graph=traced())
    for number in (*range(9), *reversed(range(8))):
        session.goto(number)
        assert same(point(session.graph), watching.points[number])


def test_weights_past_the_limit_are_announced_and_their_points_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphir.runtime.history.recorder.LIMIT_BYTES", 1)
    graph = traced()
    recorder = RecordHistory.start(graph, tmp_path / "history")
    with pytest.warns(MorphirWarning, match="cannot be restored"), instrumented(recorder):
        with torch.no_grad():
            graph.get_parameter("conv1.weight").add_(1.0)
        morphir.transform(graph, [morphir.Split("conv1", 0)])
    session = Session.open(tmp_path / "history", graph=traced())
    with pytest.raises(MorphirError, match="point 1 cannot be restored") as caught:
        session.next()
    assert caught.value.hint and session.position == 0
    assert same(point(session.graph), point(traced()))


def test_another_model_or_damaged_files_are_refused(tmp_path: Path) -> None:
    graph = traced()
    with recorded(graph, tmp_path / "history"):
        morphir.transform(graph, [morphir.Split("conv1", 0, {"conv1.weight": torch.ones(3, 3, 3)})])
    other = morphir.trace(torch.nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 5, 5))
    with pytest.raises(MorphirError, match="do not fit"):
        Session.open(tmp_path / "history", graph=other)
    session = Session.open(tmp_path / "history", graph=traced())
    thetas = tmp_path / "history" / "000001.safetensors"
    data = bytearray(thetas.read_bytes())
    data[-1] ^= 1
    thetas.write_bytes(bytes(data))
    with pytest.raises(MorphirError, match="not restored bit for bit"):
        session.next()
    thetas.write_bytes(b"")
    with pytest.raises(MorphirError, match="000001.safetensors is damaged"):
        session.next()
    assert session.position == 0
    (tmp_path / "history" / "actions.jsonl").write_text("{}\n")
    with pytest.raises(MorphirError, match="damaged in line 1"):
        Session.open(tmp_path / "history", graph=traced())
    with pytest.raises(MorphirError, match="there is no history"):
        Session.open(tmp_path / "nowhere")


def test_a_killed_writers_half_line_is_left_out(tmp_path: Path) -> None:
    graph = traced()
    with recorded(graph, tmp_path / "history"):
        PassManager(tuple(splits(3))).run(graph)
    path = tmp_path / "history" / "actions.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert Session.open(tmp_path / "history", graph=traced()).last == 2


def test_lineage_is_that_of_the_tensors(tmp_path: Path) -> None:
    """A bias that is the channel's own number is copied by every split: it tells the ancestor."""
    graph = traced()
    with torch.no_grad():
        graph.get_parameter("conv1.bias").copy_(torch.arange(4.0))
    rng = random.Random(2)
    with recorded(graph, tmp_path / "history"):
        for _ in range(5):
            morphir.transform(graph, morphisms(graph, rng))
    session = Session.open(tmp_path / "history", graph=traced())
    for number in range(session.last + 1):
        session.goto(number)
        biases = named_state(session.graph)["conv1.bias"].tolist()
        for index, bias in enumerate(biases):
            found = session.lineage("conv1", index)
            assert (found[-1].parent if found else index) == bias
    with pytest.raises(MorphirError, match="has no channel group 99"):
        session.lineage("conv1", 99)


def test_differences_and_comparisons(tmp_path: Path) -> None:
    graph = traced()
    with recorded(graph, tmp_path / "history"):
        morphir.transform(graph, [morphir.Split("conv1", 2)])
        with torch.no_grad():
            graph.get_parameter("head.bias").add_(0.25)
    session = Session.open(tmp_path / "history", graph=traced())
    first, second = session.diff(0, 1), session.diff(1, 2)
    assert first.widths == {"conv1": (4, 5)} and "conv2.weight" in first.tensors
    assert second.widths == {} and second.program == () and second.tensors == ("head.bias",)
    assert session.compare(0, 1).node is None and session.compare(0, 1).relative < 1e-6
    found = session.compare(1, 2)
    assert found.absolute == pytest.approx(0.25, abs=1e-6) and found.node == "head"
    assert session.position == 0


def test_a_model_without_source_is_opened_with_a_fresh_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise ExportError("an opaque module has no source")

    monkeypatch.setattr("morphir.runtime.history.origin.export_pytorch", refuse)
    graph = traced()
    with recorded(graph, tmp_path / "history"):
        morphir.transform(graph, [morphir.Split("conv1", 0)])
    with pytest.raises(MorphirError, match="cannot be made again: an opaque module"):
        Session.open(tmp_path / "history")
    assert same(point(graph), Session.open(tmp_path / "history", graph=traced()).at(1, point))
