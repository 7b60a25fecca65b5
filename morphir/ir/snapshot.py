"""A snapshot of a graph by reference, to put back everything when a rewrite fails half-way.

Rewrites and passes make new tensors and never write into old ones, so that keeping references is enough.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from morphir.ir.channels import ChannelLayer
from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite
from morphir.ir.state import held_tensors


@dataclass(frozen=True)
class GraphSnapshot:
    """What a graph was."""

    graph: Graph
    channels: ChannelLayer
    history: tuple[Rewrite, ...]
    program: fx.Graph
    calls: tuple[_Call, ...]
    modules: tuple[_Held, ...]
    shapes: tuple[torch.Size, ...]

    @staticmethod
    def take(graph: Graph) -> GraphSnapshot:
        """Notes the state of everything that a rewrite may change."""
        return GraphSnapshot(
            graph,
            graph.channels,
            graph.history,
            graph.graph,
            tuple((node, node.target, node.args, dict(node.kwargs)) for node in graph.graph.nodes),
            *_held(graph),
        )

    def is_current(self) -> bool:
        """Whether the graph still is what was noted, by identities and shapes; values are not compared."""
        graph, nodes = self.graph, self.graph.graph.nodes
        return (
            graph.channels is self.channels
            and graph.history is self.history
            and graph.graph is self.program
            and len(nodes) == len(self.calls)
            and all(node is call[0] and _is_as_in(call) for node, call in zip(nodes, self.calls, strict=True))
            and self._holds_the_same()
        )

    def _holds_the_same(self) -> bool:
        modules, shapes = _held(self.graph)
        alike = shapes == self.shapes and len(modules) == len(self.modules)
        return alike and all(map(_is_same, modules, self.modules))

    def restore(self) -> None:
        """Puts everything back; the generated code is made anew where the program had changed."""
        changed = self.graph.history is not self.history
        self.graph.attach(self.channels)
        self.graph.history = self.history
        for call in self.calls:
            if not _is_as_in(call):
                node, target, args, kwargs = call
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
_Call = tuple[fx.Node, Any, tuple[Any, ...], dict[str, Any]]
_Held = tuple[nn.Module, dict[str, Any]]


def _is_as_in(call: _Call) -> bool:
    node, target, args, kwargs = call
    return node.target is target and node.args is args and dict(node.kwargs) == kwargs


def _is_same(one: _Held, other: _Held) -> bool:
    """Whether two notes of a module agree; tensors are compared by identity."""
    (module, attributes), (noted, held) = one, other
    if module is not noted or attributes.keys() != held.keys():
        return False
    return all(
        _identities(value) == _identities(held[name]) if name in _TABLES else value == held[name]
        for name, value in attributes.items()
    )


def _identities(table: dict[str, Any]) -> dict[str, int]:
    return {name: id(tensor) for name, tensor in table.items()}


def _held(graph: Graph) -> tuple[tuple[_Held, ...], tuple[torch.Size, ...]]:
    """Returns what each module holds, and the shapes of all tensors."""
    modules = tuple((module, _attributes(module)) for module in graph.modules())
    shapes = tuple(tensor.shape for tensor in held_tensors(module for module, _ in modules))
    return modules, shapes


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The tables of tensors, and the plain attributes that a rewrite may set (as ``out_channels``)."""
    held = vars(module)
    plain: dict[str, Any] = {
        k: v for k, v in held.items() if isinstance(v, (int, tuple)) and not k.startswith("_")
    }
    return {**plain, **{name: dict(held[name]) for name in _TABLES}}
