"""A small network, rewritten with a breakpoint where the command line says."""

from __future__ import annotations

import sys

import torch
from torch import nn

import morphir


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 2)
    )


if __name__ == "__main__":
    graph = morphir.trace(build().eval(), torch.zeros(2, 3, 8, 8))
    kind, _, name = sys.argv[1].partition("=")
    place = {"pass": {"pass_name": name}, "rewrite": {"rewrite": int(name)} if name.isdigit() else {}}
    with morphir.debug.breakpoint_on(**place.get(kind, {kind: name})):
        morphir.transform(graph, [morphir.Split("0", 2), morphir.Prune("3", 1)])
    print("widths", {name: space.width for name, space in graph.spaces.items()})
