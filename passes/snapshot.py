"""A snapshot of graph and optimizer by reference, to put back everything when a rewrite fails half-way.

Rewrites make new parameters and never write into old ones, so that keeping references is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn, optim

from morphir.ir.channels import ChannelLayer
from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite


@dataclass(frozen=True)
class Snapshot:
    """What a graph and its optimizer were."""

    graph: Graph
    channels: ChannelLayer
    history: tuple[Rewrite, ...]
    program: fx.Graph
    calls: tuple[tuple[fx.Node, Any, tuple[Any, ...], dict[str, Any]], ...]
    modules: tuple[tuple[nn.Module, dict[str, Any]], ...]
    optimizer: optim.Optimizer | None
    groups: tuple[list[torch.Tensor], ...]
    state: dict[Any, Any]

    @staticmethod
    def take(graph: Graph, optimizer: optim.Optimizer | None) -> Snapshot:
        """Notes the state of everything that a rewrite may change."""
        return Snapshot(
            graph,
            graph.channels,
            graph.history,
            graph.graph,
            tuple((node, node.target, node.args, dict(node.kwargs)) for node in graph.graph.nodes),
            tuple((module, _attributes(module)) for module in graph.modules()),
            optimizer,
            () if optimizer is None else tuple(list(group["params"]) for group in optimizer.param_groups),
            {} if optimizer is None else {key: dict(value) for key, value in optimizer.state.items()},
        )

    def restore(self) -> None:
        """Puts everything back."""
        if self.graph.graph is not self.program:
            self.graph.graph = self.program
        for node, target, args, kwargs in self.calls:
            node.target, node.args, node.kwargs = target, args, kwargs
        for module, attributes in self.modules:
            module.__dict__.update({k: dict(v) if k in _TABLES else v for k, v in attributes.items()})
        self.graph.attach(self.channels)
        self.graph.history = self.history
        if self.optimizer is not None:
            for group, parameters in zip(self.optimizer.param_groups, self.groups, strict=True):
                group["params"] = list(parameters)
            self.optimizer.state.clear()
            self.optimizer.state.update(self.state)
        self.graph.recompile()


_TABLES = ("_parameters", "_buffers")


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The tables of tensors, and the plain attributes that a rewrite may set (as ``out_channels``)."""
    held = vars(module)
    plain: dict[str, Any] = {
        k: v for k, v in held.items() if isinstance(v, (int, tuple)) and not k.startswith("_")
    }
    return {**plain, **{name: dict(held[name]) for name in _TABLES}}
