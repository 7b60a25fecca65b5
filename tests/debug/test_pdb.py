"""pdb, in a terminal of its own: stops in passes, generated forwards and exported source, and steps on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from debug import small
from debug.places import SCRIPT, Places
from terminal import Terminal, paths

Open = Callable[..., Terminal]


def test_pdb_stops_before_the_rewrite_with_its_locals_and_before_a_pass(open_terminal: Open) -> None:
    before_it = ("space=0", "rewrite=1", "node=_1")
    pdb = open_terminal(small.__file__, *before_it, "pass=prune-channels")
    pdb.answer()
    for place in before_it:
        assert pdb.ask("p space") == "ChannelSpace('0': 4 exact; made by %_0; read by %_3)", place
        assert pdb.ask("p index_map") == "IndexMap(0: 4 -> 5 [0 1 2+ 2- 3])", place
        assert pdb.ask("p morphism") == "'split 0[2]'", place
        assert pdb.ask("p graph.spaces['0'].width") == "4", "nothing has changed yet"
        assert "morph_channels.py" in pdb.ask("bt"), "the stack shows the pass that it stopped in"
        assert "widths {'0': 5, '3': 4, '5': 2}" in pdb.ask("c"), place
    assert pdb.ask("p pass_name") == "'prune-channels'"
    assert pdb.ask("p graph.spaces['0'].width") == "5"
    assert "widths" in pdb.end("c")


def test_pdb_steps_on_from_the_breakpoint_into_the_rewriter(open_terminal: Open) -> None:
    pdb = open_terminal(small.__file__, "space=3")
    pdb.answer()
    assert "--Return--" in pdb.ask("r")
    pdb.ask("n")
    pdb.ask("r")
    assert "rewriter.py" in pdb.ask("n")
    assert "widths" in pdb.end("c")


def test_pdb_steps_through_a_pass_a_forward_and_exported_source(
    places: Places, tmp_path: Path, open_terminal: Open
) -> None:
    pdb = open_terminal(SCRIPT, tmp_path / "net_source.py")
    assert "_stop_before_rewrite" in pdb.answer()
    for number, place in enumerate(places.all, 1):
        assert pdb.ask(f"b {place}") == f"Breakpoint {number} at {place}"
    assert f"{places.rewrite.file}({places.rewrite.line})apply()" in pdb.ask("c")
    assert pdb.ask("p graph.spaces['conv1'].width, self.morphisms[0].space") == "(5, 'conv2')"
    pdb.ask("n")
    assert pdb.ask("p maps") == "(IndexMap(conv2: 5 -> 4 [0 2 3 4]),)"
    assert str(places.forward.file) in (shown := pdb.ask("c")) and "%relu; stepped.py:" in shown
    assert pdb.ask("p conv1.shape") == "torch.Size([2, 5, 6, 6])"
    assert "conv2 = self.conv2(relu)" in pdb.ask("n") and "relu_1 =" in pdb.ask("n")
    assert pdb.ask("p conv1.shape, relu.shape") == "(torch.Size([2, 5, 6, 6]), torch.Size([2, 5, 6, 6]))"
    assert "x = self.conv1(x)" in (shown := pdb.ask("c")) and str(places.source.file) in shown
    assert pdb.ask("p x.shape") == "torch.Size([2, 3, 8, 8])"
    assert "x = torch.relu(x)" in pdb.ask("n") and pdb.ask("p x.shape") == "torch.Size([2, 5, 6, 6])"
    assert "done {'conv1': 5, 'conv2': 4, 'head': 2}" in pdb.end("c")


def test_pythonbreakpoint_names_the_debugger(tmp_path: Path, open_terminal: Open) -> None:
    (tmp_path / "mine.py").write_text("def stop():\n    print('a debugger of my own')\n")
    hook = {"PYTHONBREAKPOINT": "mine.stop", "PYTHONPATH": paths(tmp_path)}
    shown = open_terminal(small.__file__, "space=0", **hook).process.read()
    assert "a debugger of my own" in shown and "widths" in shown and "(Pdb)" not in shown
