"""The difference of two programs' text: applied to the one, it makes the other."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import morphir
from morphir.ir.difference import difference
from morphir.seeds import resolve

_LINES = st.lists(st.sampled_from([f"%{name}: {width}" for name in "abcde" for width in (1, 2)]), max_size=12)


def apply(before: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Applies a unified diff without a header as its definition says, and checks every line that it names."""
    made: list[str] = []
    at = 0
    for line in lines:
        if line.startswith("@@"):
            old, old_count, new, new_count = (
                int(n) if n else 1
                for n in re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", line).groups()  # pyright: ignore
            )
            start = old - (old_count > 0)
            made += before[at:start]
            at = start
            assert new - (new_count > 0) == len(made)
        else:
            if line[0] in " -":
                assert before[at] == line[1:]
                at += 1
            if line[0] in " +":
                made.append(line[1:])
    return made + list(before[at:])


@given(_LINES, _LINES, st.integers(0, 3))
def test_applied_it_makes_the_other(before: list[str], after: list[str], context: int) -> None:
    lines = list(difference(before, after, context=context))
    assert apply(before, lines) == after
    assert bool(lines) == (before != after)


def test_what_a_line_was_stands_before_what_it_is() -> None:
    before = ["spaces", "%a: 3", "%b: relu(%a)", "%c: 3", "%d: 5"]
    after = ["spaces", "%a: 4", "%b: relu(%a)", "%new: 1", "%c: 4", "%d: 5"]
    assert list(difference(before, after, ("one", "two"), context=0)) == [
        *("--- one", "+++ two"),
        *("@@ -2 +2 @@", "-%a: 3", "+%a: 4"),
        *("@@ -4 +4,2 @@", "+%new: 1", "-%c: 3", "+%c: 4"),
    ]


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch is not installed")
def test_patch_takes_it(tmp_path: Path) -> None:
    graph = morphir.trace(resolve("vgg19", width=4), torch.zeros(2, 3, 32, 32))
    before = morphir.print_graph(graph).splitlines()
    morphir.transform(graph, [morphir.Split("features.3", 1), morphir.Prune("features.10", 0)])
    after = morphir.print_graph(graph).splitlines()
    program = tmp_path / "program.txt"
    program.write_text("\n".join(before) + "\n")
    lines = difference(before, after, ("program.txt", "program.txt"))
    subprocess.run(["patch", str(program)], input="\n".join(lines) + "\n", text=True, check=True)
    assert program.read_text().splitlines() == after
