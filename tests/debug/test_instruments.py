"""Instruments hear of every pass and rewrite in order, and change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import morphir
from debug.small import build
from morphir.debug import (
    ALL,
    BreakOn,
    DumpIR,
    Instrument,
    PendingRewrite,
    PrintIR,
    PrintRemarks,
    TimePasses,
    VerifyEach,
    instrumented,
)
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite
from morphir.ir.printer import print_graph
from passes.base import PassResult
from passes.instruments import active
from passes.manager import PassManager

MORPHISMS = [morphir.Split("0", 2), morphir.Prune("3", 1)]


def traced() -> Graph:
    return morphir.trace(build().eval(), torch.zeros(2, 3, 8, 8))


class Listening(Instrument):
    """Notes what it hears, and the widths at that moment."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, int, int]] = []

    def _note(self, what: str, name: str, graph: Graph) -> None:
        self.heard.append((what, name, graph.spaces["0"].width, graph.spaces["3"].width))

    def before_pass(self, name: str, graph: Graph) -> None:
        self._note("before pass", name, graph)

    def after_pass(self, name: str, graph: Graph, result: PassResult, seconds: float) -> None:
        assert result.index_maps and seconds >= 0
        self._note("after pass", name, graph)

    def before_rewrite(self, rewrite: PendingRewrite) -> None:
        assert len(rewrite.maps) == len(rewrite.morphisms) == 1
        self._note(f"before #{rewrite.number}", rewrite.name, rewrite.graph)

    def after_rewrite(self, graph: Graph, rewrite: Rewrite, seconds: float) -> None:
        assert graph.history[-1] is rewrite and seconds >= 0
        self._note(f"after #{rewrite.number}", rewrite.name, graph)

    def close(self) -> None:
        self.heard.append(("closed", "", 0, 0))


def test_every_pass_and_rewrite_is_told_in_order() -> None:
    listening = Listening()
    graph = traced()
    with instrumented(listening):
        morphir.transform(graph, MORPHISMS)
    assert listening.heard == [
        ("before pass", "split-channels", 4, 5),
        ("before #1", "split-channels", 4, 5),
        ("after #1", "split-channels", 5, 5),
        ("after pass", "split-channels", 5, 5),
        ("before pass", "prune-channels", 5, 5),
        ("before #2", "prune-channels", 5, 5),
        ("after #2", "prune-channels", 5, 4),
        ("after pass", "prune-channels", 5, 4),
        ("closed", "", 0, 0),
    ]
    assert active() == ()
    morphir.transform(graph, [morphir.Split("0", 0)])
    assert listening.heard[-1][0] == "closed", "not told of what comes after its block"


def test_a_pending_rewrite_names_the_nodes_that_it_changes() -> None:
    nodes: list[frozenset[str]] = []

    class Noting(Instrument):
        def before_rewrite(self, rewrite: PendingRewrite) -> None:
            nodes.append(rewrite.nodes())

    with instrumented(Noting()):
        morphir.transform(traced(), [morphir.Split("0", 2)])
    assert nodes == [frozenset({"_0", "_1", "_2", "_3"})]


def test_the_printed_difference_is_that_of_the_two_programs() -> None:
    texts: list[str] = []
    graph = traced()
    before = print_graph(graph).splitlines()
    with instrumented(PrintIR(difference=True, write=texts.append)):
        morphir.transform(graph, [morphir.Split("0", 2)])
    after = print_graph(graph).splitlines()
    difference = texts[0].splitlines()
    assert difference[0] == "// ----- difference made by split-channels -----"
    removed = [line[1:] for line in difference[1:] if line.startswith("-") and not line.startswith("---")]
    added = [line[1:] for line in difference[1:] if line.startswith("+") and not line.startswith("+++")]
    assert removed == [line for line in before if line not in after] and removed
    assert added == [line for line in after if line not in before] and added


def test_the_ir_is_printed_around_the_passes_that_are_named() -> None:
    texts: list[str] = []
    with instrumented(PrintIR(before=ALL, after={"prune-channels"}, write=texts.append)):
        morphir.transform(traced(), MORPHISMS)
    assert [text.splitlines()[0] for text in texts] == [
        "// ----- IR before split-channels -----",
        "// ----- IR before prune-channels -----",
        "// ----- IR after prune-channels -----",
    ]


def test_only_changed_programs_are_printed() -> None:
    texts: list[str] = []
    with instrumented(PrintIR(changed=True, write=texts.append)):
        morphir.transform(traced(), [morphir.Split("0", 2)])
    assert [text.splitlines()[0] for text in texts] == ["// ----- IR after split-channels -----"]


def test_dumped_files_are_the_programs_in_order(tmp_path: Path) -> None:
    graph = traced()
    start = print_graph(graph)
    with instrumented(DumpIR(tmp_path / "ir")):
        morphir.transform(graph, MORPHISMS)
    files = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert files == ["0000-start.ir", "0001-split-channels.ir", "0002-prune-channels.ir"]
    assert (tmp_path / "ir" / files[0]).read_text() == start
    assert (tmp_path / "ir" / files[-1]).read_text() == print_graph(graph)


def test_remarks_of_the_kinds_that_are_wanted() -> None:
    texts: list[str] = []
    graph = traced()
    with instrumented(PrintRemarks({"applied"}, texts.append), PrintRemarks({"refused"}, texts.append)):
        morphir.transform(graph, MORPHISMS)
    assert [text.split(" at ")[0] for text in texts] == [
        "split-channels: applied 0[2]: split in two [split]",
        "prune-channels: applied 3[1]: pruned [prune]",
    ]


def test_times_add_up_and_are_printed_at_the_end() -> None:
    texts: list[str] = []
    times = TimePasses(texts.append)
    with instrumented(times):
        graph = traced()
        morphir.transform(graph, MORPHISMS)
        morphir.transform(graph, [morphir.Split("3", 0)])
    assert times.runs == {"split-channels": 2, "prune-channels": 2}
    assert len(texts) == 1 and texts[0].splitlines()[0] == "// ----- time of passes -----"


def test_verify_each_finds_what_a_pass_left_wrong() -> None:
    class Spoiling(Instrument):
        def after_pass(self, name: str, graph: Graph, result: PassResult, seconds: float) -> None:
            # behind the rewriter's back
            next(node for node in graph.graph.nodes if node.name == "_2").target = "4"

    graph = traced()
    with instrumented(Spoiling(), VerifyEach()), pytest.raises(MorphirError) as caught:
        morphir.transform(graph, [morphir.Split("0", 2)])
    assert caught.value.node == "_3"
    assert "found by --verify-each after pass split-channels" in caught.value.__notes__
    assert graph.spaces["0"].width == 4, "an error of an instrument leaves the graph as it was"
    PassManager(()).run(graph)


@pytest.mark.parametrize("text", ["pass=x", "rewrite=12", "space=a.b", "node", "rewrite"])
def test_breakpoints_are_read(text: str) -> None:
    kind, _, value = text.partition("=")
    assert BreakOn.parse(text) == BreakOn(kind, value)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["line=3", "rewrite=first", ""])
def test_other_breakpoints_are_refused(text: str) -> None:
    with pytest.raises(MorphirError, match="there is no breakpoint"):
        BreakOn.parse(text)


def test_a_breakpoint_needs_a_place() -> None:
    with pytest.raises(MorphirError, match="needs a place"):
        morphir.debug.breakpoint_on()
