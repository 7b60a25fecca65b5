"""pdb, in a terminal of its own, stops inside the pass and shows what the rewrite is about."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "small.py"


def in_pdb(place: str, commands: list[str]) -> str:
    """Runs the script under a pseudo-terminal, types the commands, and returns what the terminal shows."""
    master, slave = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "200"}
    environment.pop("PYTHONBREAKPOINT", None)
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), place], stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    shown = b""
    waiting = list(commands)
    try:
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # the other end is closed: the process has ended
                break
            if not part:
                break
            shown += part
            if shown.rstrip().endswith(b"(Pdb)") and waiting:
                os.write(master, f"{waiting.pop(0)}\n".encode())
    finally:
        os.close(master)
        assert process.wait() == 0
    return shown.decode().replace("\r", "")


@pytest.mark.parametrize("place", ["space=0", "rewrite=1", "node=_1"])
def test_pdb_stops_before_the_rewrite_with_its_locals(place: str) -> None:
    shown = in_pdb(place, ["p space", "p index_map", "p morphism", "p graph.spaces['0'].width", "bt", "c"])
    assert "ChannelSpace('0': 4 exact; made by %_0; read by %_3)" in shown
    assert "IndexMap(0: 4 -> 5 [0 1 2+ 2- 3])" in shown
    assert "'split 0[2]'" in shown
    assert "morph_channels.py" in shown, "the stack shows the pass that it stopped in"
    assert "widths {'0': 5, '3': 4, '5': 2}" in shown


def test_pdb_stops_before_a_pass() -> None:
    shown = in_pdb("pass=prune-channels", ["p pass_name", "p graph.spaces['0'].width", "c"])
    assert "'prune-channels'" in shown and "\n5\n" in shown


def test_pdb_steps_on_from_the_breakpoint_into_the_rewriter() -> None:
    shown = in_pdb("space=3", ["r", "n", "r", "n", "c"])
    assert "rewriter.py" in shown and "widths" in shown
