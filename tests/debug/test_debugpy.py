"""VS Code's debugger: stops in passes, generated forwards and exported source, shows locals, steps on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from debug.dap import Client
from debug.places import SCRIPT, Place, Places
from terminal import paths

pytest.importorskip("debugpy", reason="debugpy is not installed")


@pytest.fixture
def client(places: Places, tmp_path: Path) -> Iterator[Client]:
    kept = {name: os.environ[name] for name in ("MORPHIR_CACHE_DIR", "HOME", "PATH") if name in os.environ}
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths(), **kept}
    made = Client(SCRIPT, [tmp_path / "net_source.py"], environment, places.all)
    yield made
    made.close()


def at(frame: dict[str, Any]) -> Place:
    return Place(Path(frame["source"]["path"]), frame["line"])


def test_vs_codes_debugger_steps_through_passes_forwards_and_exported_source(
    client: Client, places: Places
) -> None:
    frame = client.stopped()  # breakpoint_on, before the first pass file's
    assert at(frame) == places.rewrite and "'conv1'" in client.evaluate("self.morphisms[0].space", frame)
    client.resume("continue", frame)

    frame = client.stopped()
    shown = client.local_variables(frame)
    assert frame["name"] == "_stop_before_rewrite"
    assert shown["index_map"] == "IndexMap(conv1: 4 -> 5 [0 1 2+ 2- 3])"
    assert shown["space"].startswith("ChannelSpace('conv1': 4 exact; made by %conv1; read by %conv2")
    assert shown["morphism"] == "'split conv1[2]'" and shown["graph"].startswith("Graph(")
    client.resume("continue", frame)

    frame = client.stopped()
    assert at(frame) == places.rewrite and client.evaluate("self.morphisms[0].space", frame) == "'conv2'"
    client.resume("next", frame)
    frame = client.stopped()
    assert at(frame) == Place(places.rewrite.file, places.rewrite.line + 1)
    assert client.local_variables(frame)["maps"] == "(IndexMap(conv2: 5 -> 4 [0 2 3 4]),)"
    client.resume("continue", frame)

    frame = client.stopped()
    assert at(frame) == places.forward and frame["name"] == "forward"
    assert client.evaluate("conv1.shape", frame) == "torch.Size([2, 5, 6, 6])"
    for step in (1, 2):
        client.resume("next", frame)
        frame = client.stopped()
        assert at(frame) == Place(places.forward.file, places.forward.line + step)
    assert client.local_variables(frame)["relu"].startswith("tensor("), "kept after its last use"
    client.resume("continue", frame)

    frame = client.stopped()
    assert at(frame) == places.source and client.evaluate("x.shape", frame) == "torch.Size([2, 3, 8, 8])"
    client.resume("next", frame)
    frame = client.stopped()
    assert at(frame) == Place(places.source.file, places.source.line + 1)
    assert client.evaluate("x.shape", frame) == "torch.Size([2, 5, 6, 6])"
    client.resume("continue", frame)
    assert "done {'conv1': 5, 'conv2': 4, 'head': 2}" in client.output()
