"""A snapshot of a graph by reference, to put back everything when a rewrite fails half-way.

Rewrites and passes make new tensors and never write into old ones, so that keeping references is enough.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from morphir.ir.channels import ChannelLayer
from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite


@dataclass(frozen=True)
class GraphSnapshot:
    """What a graph was."""

    graph: Graph
    channels: ChannelLayer
    history: tuple[Rewrite, ...]
    program: fx.Graph
    calls: tuple[tuple[fx.Node, Any, tuple[Any, ...], dict[str, Any]], ...]
    modules: tuple[tuple[nn.Module, dict[str, Any]], ...]

    @staticmethod
    def take(graph: Graph) -> GraphSnapshot:
        """Notes the state of everything that a rewrite may change."""
        return GraphSnapshot(
            graph,
            graph.channels,
            graph.history,
            graph.graph,
            tuple((node, node.target, node.args, dict(node.kwargs)) for node in graph.graph.nodes),
            tuple((module, _attributes(module)) for module in graph.modules()),
        )

    def restore(self) -> None:
        """Puts everything back; the generated code is made anew where the program had changed."""
        changed = self.graph.history is not self.history
        self.graph.attach(self.channels)
        self.graph.history = self.history
        for node, target, args, kwargs in self.calls:
            if node.target is not target or node.args is not args or dict(node.kwargs) != kwargs:
                node.target, node.args, node.kwargs = target, args, kwargs
                changed = True
        for module, attributes in self.modules:
            module.__dict__.update({k: dict(v) if k in _TABLES else v for k, v in attributes.items()})
        if self.graph.graph is not self.program:
            self.graph.graph = self.program  # generates the code, too
        elif changed:
            self.graph.recompile()


@contextmanager
def restored(graph: Graph) -> Generator[None]:
    """Puts a graph back as it was; cheaper than a copy, since rewrites make new tensors for old ones."""
    snapshot = GraphSnapshot.take(graph)
    try:
        yield
    finally:
        snapshot.restore()


_TABLES = ("_parameters", "_buffers")


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The tables of tensors, and the plain attributes that a rewrite may set (as ``out_channels``)."""
    held = vars(module)
    plain: dict[str, Any] = {
        k: v for k, v in held.items() if isinstance(v, (int, tuple)) and not k.startswith("_")
    }
    return {**plain, **{name: dict(held[name]) for name in _TABLES}}
