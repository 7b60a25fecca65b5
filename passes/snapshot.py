"""A snapshot of graph and optimizer by reference, to put back everything when a rewrite fails half-way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import optim

from morphir.ir.graph import Graph
from morphir.ir.snapshot import GraphSnapshot


@dataclass(frozen=True)
class Snapshot:
    """What a graph and its optimizer were."""

    graph: GraphSnapshot
    optimizer: optim.Optimizer | None
    groups: tuple[list[torch.Tensor], ...]
    state: dict[Any, Any]

    @staticmethod
    def take(graph: Graph, optimizer: optim.Optimizer | None) -> Snapshot:
        """Notes the state of everything that a rewrite may change."""
        return Snapshot(
            GraphSnapshot.take(graph),
            optimizer,
            () if optimizer is None else tuple(list(group["params"]) for group in optimizer.param_groups),
            {} if optimizer is None else {key: dict(value) for key, value in optimizer.state.items()},
        )

    def restore(self) -> None:
        """Puts everything back."""
        self.graph.restore()
        if self.optimizer is not None:
            for group, parameters in zip(self.optimizer.param_groups, self.groups, strict=True):
                group["params"] = list(parameters)
            self.optimizer.state.clear()
            self.optimizer.state.update(self.state)
