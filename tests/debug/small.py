"""A small network, rewritten with a breakpoint at each place that the command line names, one by one."""

from __future__ import annotations

import sys

import torch
from torch import nn

import morphir


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 2)
    )


def rewrite(place: str) -> None:
    graph = morphir.trace(build().eval(), torch.zeros(2, 3, 8, 8))
    kind, _, name = place.partition("=")
    places = {"pass": {"pass_name": name}, "rewrite": {"rewrite": int(name)} if name.isdigit() else {}}
    with morphir.debug.breakpoint_on(**places.get(kind, {kind: name})):
        morphir.transform(graph, [morphir.Split("0", 2), morphir.Prune("3", 1)])
    print("widths", {name: space.width for name, space in graph.spaces.items()})


if __name__ == "__main__":
    for place in sys.argv[1:]:
        rewrite(place)
