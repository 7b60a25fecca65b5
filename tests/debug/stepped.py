"""A small network, rewritten, run and exported: what the tests of debuggers step through."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import morphir
from exporters.pytorch_source import export_pytorch
from morphir.ir.graph import Graph

INPUTS = torch.ones(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return self.head(x.mean((2, 3)))


def rewritten() -> Graph:
    """Traces the network and rewrites it twice; stops before the first rewrite."""
    graph = morphir.trace(Net().eval(), INPUTS)
    with morphir.debug.breakpoint_on(space="conv1"):
        morphir.transform(graph, [morphir.Split("conv1", 2)])
    morphir.transform(graph, [morphir.Prune("conv2", 1)])
    return graph


def exported(graph: Graph, folder: Path) -> Path:
    """Exports the network, and returns its source."""
    return export_pytorch(graph, folder / "net_source.py", verify=False).source


def imported(path: Path) -> Any:
    """Imports exported source, and makes the network."""
    spec = importlib.util.spec_from_file_location("net_source", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


if __name__ == "__main__":
    made = rewritten()
    made(INPUTS)
    imported(Path(sys.argv[1]))(INPUTS)
    print("done", {name: space.width for name, space in made.spaces.items()})
