"""A wrong rewrite among forty: bisection names it, its reproducer fails again, its error names the line."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import morphir
from debug.history_case import Net, WrongSplit, splits, traced
from morphir.debug import (
    Instrument,
    Session,
    VerifyOutputs,
    WriteReproducer,
    bisect,
    instrumented,
    maximum_difference,
    recorded,
    user_oracle,
    verifier,
)
from morphir.errors import MorphirError, VerificationError
from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite
from morphir.runtime.reproduction.reproducer import ExpectedError, Reproducer
from morphir.runtime.reproduction.writing import announce
from passes.manager import PassManager
from passes.transform import replay

WRONG = 23


def line_of(text: str) -> int:
    lines, first = inspect.getsourcelines(Net)
    return next(first + at for at, line in enumerate(lines) if text in line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph, place = traced(), tmp_path_factory.mktemp("wrong") / "history"
    with recorded(graph, place):
        PassManager(tuple(splits(40, wrong=WRONG))).run(graph)
    return place


def test_bisection_names_the_wrong_rewrite(folder: Path) -> None:
    session = Session.open(folder, graph=traced())
    session.goto(7)
    found = bisect(session, maximum_difference(session, 1e-3))
    assert found.action.number == WRONG and found.action.name == "wrong-split"
    assert found.looks <= 2 + 6 and session.position == 7
    space = found.action.rewrite.maps[0].space if found.action.rewrite else ""
    reader, text = {"conv1": ("conv2", "self.conv2(x)"), "conv2": ("head", "self.head(")}[space]
    assert found.comparison.node == reader
    assert found.comparison.source == f"history_case.py:{line_of(text)}"


def test_outputs_are_compared_on_inputs_of_ones_own(folder: Path) -> None:
    session = Session.open(folder, graph=traced())
    images = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    assert bisect(session, maximum_difference(session, 1e-3, ((images,), {}))).action.number == WRONG
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 9 channels instead"):
        maximum_difference(session, inputs=((torch.zeros(1, 9, 9, 9),), {}))


def test_every_oracle_by_brute_force(folder: Path) -> None:
    session = Session.open(folder, graph=traced())
    wide = user_oracle("narrow", lambda graph: graph.spaces["conv1"].width < 12)
    expected = next(n for n in range(41) if session.at(n, lambda g: g.spaces["conv1"].width) >= 12)
    assert bisect(session, wide).action.number == expected
    with pytest.raises(MorphirError, match="passes at the last point"):
        bisect(session, verifier)
    with pytest.raises(MorphirError, match="fails at the start already: never fails"):
        bisect(session, user_oracle("never", lambda graph: False))
    with pytest.raises(MorphirError, match="odd returned int"):
        bisect(session, user_oracle("odd", lambda graph: 3))
    with pytest.raises(MorphirError, match="broken raised ZeroDivisionError"):
        bisect(session, user_oracle("broken", lambda graph: 1 / 0))
    assert session.position == 0


def test_the_verifier_is_an_oracle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session.open(folder, graph=traced())

    def broken(graph: Graph) -> None:
        if len(graph.history) >= 11:
            raise VerificationError("planted", node="conv1")

    monkeypatch.setattr("morphir.runtime.history.bisection.verify_channels", broken)
    found = bisect(session, verifier)
    assert found.action.number == 11 and found.message.startswith("planted")


def test_the_verifier_and_the_reproducer_find_it_while_it_runs(tmp_path: Path) -> None:
    graph, said = traced(), list[str]()
    before = {key: tensor.clone() for key, tensor in graph.state_dict().items()}
    with (
        instrumented(VerifyOutputs(), WriteReproducer(tmp_path, write=said.append)),
        pytest.raises(VerificationError, match=f"rewrite {WRONG} .wrong-split") as caught,
    ):
        PassManager(tuple(splits(40, wrong=WRONG))).run(graph)
    error = caught.value
    text = {"conv2": "self.conv2(x)", "head": "self.head("}[error.node or ""]
    assert error.source == f"history_case.py:{line_of(text)}" and f"> %{error.node}" in str(error)
    assert all((graph.state_dict()[key] == value).all() for key, value in before.items())
    place = tmp_path / "failure-001"
    assert said[0].startswith(f"reproducer {place}: fails again in a fresh process")
    reproducer = Reproducer.read(place)
    expected, again = reproducer.expected, reproducer.run(place)
    assert again is not None and again.is_same(expected) and f"rewrite {WRONG} " in again.message
    assert (expected.kind, expected.node) == ("VerificationError", error.node)
    assert {path.name for path in place.iterdir()} == {
        *("model.py", "origin.json", "program.ir", "reproducer.json"),
        *("state.safetensors", "pipeline.safetensors"),
    }


def test_a_remark_names_node_and_line_of_every_split_also_of_the_wrong_one(folder: Path) -> None:
    actions = Session.open(folder, graph=traced()).actions[1:]
    assert len(actions) == 40 and actions[WRONG - 1].name == "wrong-split"
    for action in actions:
        (remark,) = action.remarks
        assert remark.node == remark.space and action.rewrite is not None
        assert str(remark.source) == f"history_case.py:{line_of(f'self.{remark.space}(x)')}"
        assert remark.space == action.rewrite.maps[0].space
        assert f"at %{remark.node} (history_case.py:" in str(remark)


def test_a_rewrite_that_is_refused_on_its_own_is_reproduced(tmp_path: Path) -> None:
    graph, said = traced(), list[str]()
    PassManager(tuple(splits(4))).run(graph)
    (index_map,) = graph.history[0].maps
    broken = Rewrite(1, "replayed", (), (index_map.of_copies(index_map.space, (1, 2)),), 0)
    with instrumented(WriteReproducer(tmp_path, write=said.append)), pytest.raises(Exception) as caught:
        replay(graph, [broken])
    assert said[0].startswith(f"reproducer {tmp_path / 'failure-001'}: fails again in a fresh process")
    assert ExpectedError.of(caught.value).is_same(Reproducer.read(tmp_path / "failure-001").expected)


def test_what_does_not_fail_again_is_said_not_to(tmp_path: Path) -> None:
    class Failing(Instrument):
        def after_rewrite(self, graph: Graph, rewrite: Rewrite, seconds: float) -> None:
            raise MorphirError("of this process alone")

    said = list[str]()
    watching = instrumented(WriteReproducer(tmp_path, write=said.append), Failing())
    with watching, pytest.raises(MorphirError, match="of this process"):
        morphir.transform(traced(), [morphir.Split("conv1", 0)])
    assert "does not reproduce: nothing fails in a fresh process" in said[0]
    place = tmp_path / "failure-001"
    (place / "origin.json").write_text("{")
    assert "does not run again" in announce(place, Reproducer.read(place).expected)


def test_what_cannot_be_stored_is_said_to_be_so(tmp_path: Path) -> None:
    class Local(WrongSplit):
        def apply(self, rewriter: object) -> object:  # type: ignore[override]
            raise MorphirError("before any rewrite")

    said = list[str]()
    with instrumented(WriteReproducer(tmp_path, write=said.append)), pytest.raises(MorphirError):
        PassManager((Local("conv1", 0),)).run(traced())
    assert "no reproducer" in said[0] and "cannot import it" in said[0]
    assert not (tmp_path / "failure-001").exists()
