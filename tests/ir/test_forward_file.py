"""The generated forward is a file: a line for each node, what made it, every local kept under a debugger."""

from __future__ import annotations

import copy
import gc
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import morphir
from morphir.debug import Session, recorded
from morphir.errors import MorphirWarning
from morphir.ir import forward_file
from morphir.ir.forward_file import CACHE_VARIABLE, KEEP_VARIABLE, forward_folder, write_forward
from morphir.ir.graph import Graph

SMALL = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv1(x))
        x = self.conv2(x)
        x += 1
        return self.head(x.mean((2, 3)))


LINE = Net.forward.__code__.co_firstlineno


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return morphir.trace(Net().eval(), SMALL)


def lines(graph: Graph) -> list[list[str]]:
    """The file's statements and comments, without the header."""
    assert graph.forward_file is not None
    text = graph.forward_file.read_text()
    assert text == graph.code and "= None" not in text
    return [[part.strip() for part in line.split("  # ")] for line in text.splitlines()[3:]]


def test_a_line_for_each_node_says_where_it_comes_from(graph: Graph, tmp_path: Path) -> None:
    morphir.transform(graph, [morphir.Split("conv2", 1)])
    morphir.transform(graph, [morphir.Split("conv1", 1), morphir.Prune("conv1", 0)])
    conv2, source = "rewrite 1, split-channels", "test_forward_file.py"
    conv1 = "rewrite 3, prune-channels"
    assert [row[1:] for row in lines(graph)][1:] == [
        [f"%conv1; {source}:{LINE + 1}; {conv1}"],
        [f"%relu; {source}:{LINE + 1}; {conv1}"],
        [f"%conv2; {source}:{LINE + 2}; {conv1}"],
        [f"%add; {source}:{LINE + 3}; {conv2}"],
        [f"%mean; {source}:{LINE + 4}; {conv2}"],
        [f"%head; {source}:{LINE + 4}; {conv2}"],
        ["%output"],
    ]
    assert lines(graph)[0][0] == "def forward(self, x):" and lines(graph)[0][1].startswith("%x; ")
    assert [row[0] for row in lines(graph)][4] == "add = conv2 + 1"
    (folder,) = {path.parent for path in tmp_path.rglob("*.py")}
    assert folder == tmp_path / "cache" / "forward"


def test_the_comments_follow_a_history_back(graph: Graph, tmp_path: Path) -> None:
    before = graph.code
    with recorded(graph, tmp_path / "history"):
        morphir.transform(graph, [morphir.Split("conv1", 0)])
        after = graph.code
        morphir.transform(graph, [morphir.Split("conv1", 1)])
    session = Session.open(tmp_path / "history", graph=morphir.trace(Net().eval(), SMALL))
    for point, code in ((1, after), (0, before), (1, after), (2, graph.code)):
        session.goto(point)
        for ours, recorded_code in zip(lines(session.graph)[1:], code.splitlines()[4:], strict=True):
            assert ours == [part.strip() for part in recorded_code.split("  # ")]


def test_a_rewrite_that_fails_leaves_the_file_as_it_was(graph: Graph) -> None:
    class Stopping(morphir.debug.Instrument):
        def after_rewrite(self, *_: object) -> None:
            raise ValueError("no")

    before = graph.forward_file
    with morphir.debug.instrumented(Stopping()), pytest.raises(ValueError, match="no"):
        morphir.transform(graph, [morphir.Split("conv1", 0)])
    assert graph.forward_file == before


def test_tracebacks_show_the_files_line(graph: Graph) -> None:
    for watched in (False, True):
        with pytest.raises(RuntimeError) as caught, _watching(watched):
            graph(torch.zeros(2, 7, 8, 8))
        (frame,) = [
            f
            for f in traceback.extract_tb(caught.value.__traceback__)
            if f.filename == str(graph.forward_file)
        ]
        assert (frame.line or "").startswith("conv1 = self.conv1(x)"), frame


@contextmanager
def _watching(watched: bool = True) -> Iterator[list[dict[str, Any]]]:
    """Traces as a debugger does; yields the locals of each generated forward that returns."""
    found: list[dict[str, Any]] = []
    before = sys.gettrace()

    def local(frame: FrameType, event: str, argument: object) -> Any:
        if event == "return":
            found.append(dict(frame.f_locals))
        return local

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        generated = Path(frame.f_code.co_filename).parent.name == "forward"
        return local if generated and frame.f_code.co_name == "forward" else None

    sys.settrace(trace if watched else before)
    try:
        yield found
    finally:
        sys.settrace(before)


def test_every_local_is_kept_under_a_debugger(graph: Graph) -> None:
    plain = graph(SMALL)
    with _watching() as found:
        watched = graph(SMALL)
    assert torch.equal(plain, watched)
    (local,) = found
    assert set(local) == {"self", "x", "conv1", "relu", "conv2", "add", "mean", "head"}
    assert all(isinstance(local[name], torch.Tensor) for name in local if name != "self")
    morphir.transform(graph, [morphir.Split("conv1", 1)])
    with _watching() as found:
        graph(SMALL)
    assert found[0]["conv1"].shape[1] == 5, "also after a rewrite"


def test_values_are_let_go_of_where_nobody_looks(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    graph.get_submodule("conv1").register_forward_hook(lambda *given: seen.append(weakref.ref(given[2])))
    graph.get_submodule("head").register_forward_hook(lambda *_: alive.append(seen[-1]() is not None))
    with torch.no_grad():
        graph(SMALL)
        monkeypatch.setenv(KEEP_VARIABLE, "1")
        graph(SMALL)
    gc.collect()
    assert alive == [False, True]


def test_copies_and_compiled_graphs_compute_the_same(graph: Graph) -> None:
    morphir.transform(graph, [morphir.Split("conv1", 0)])
    clone, inputs = copy.deepcopy(graph), torch.randn(2, 3, 8, 8)
    assert clone.forward_file == graph.forward_file
    expected = graph(inputs)
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(graph, fullgraph=True, backend="eager")
    assert torch.equal(compiled(inputs), expected) and torch.equal(clone(inputs), expected)
    morphir.transform(clone, [morphir.Split("conv1", 0)])
    assert clone.forward_file != graph.forward_file


def test_a_folder_that_cannot_be_written_is_one_warning(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "taken"))
    with pytest.warns(MorphirWarning, match="cannot be written.*MORPHIR_CACHE_DIR") as caught:
        morphir.transform(graph, [morphir.Split("conv1", 0)])
    assert len(caught) == 1 and graph.forward_file is None
    with pytest.raises(RuntimeError) as error:
        graph(torch.zeros(2, 7, 8, 8))
    shown = "".join(traceback.format_tb(error.value.__traceback__))
    assert "%conv1; test_forward_file.py" in shown, "the text is shown all the same"


def test_where_the_files_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    assert forward_folder() == tmp_path / "named" / "forward"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert forward_folder() == tmp_path / "xdg" / "morphir" / "forward"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert forward_folder() == tmp_path / ".cache" / "morphir" / "forward"


def test_writers_side_by_side_and_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(forward_file, "_MOST_FILES", 20)
    texts = [f"# {number % 40}\n" * 2000 for number in range(200)]

    def write(text: str) -> bool:
        path = write_forward(text)
        return path is not None and not path.name.endswith(".new")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write, texts))
    left = list((tmp_path / "forward").iterdir())
    assert 18 <= len(left) <= 20 and all(path.read_text() in texts for path in left)
    damaged = left[0]
    text = damaged.read_text()
    damaged.write_text("half a fi")
    assert write_forward(text) == damaged and damaged.read_text() == text
