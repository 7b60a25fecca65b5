"""A private copy of a graph's program to learn on: same modules and parameters, other wiring.

Nothing in the copy is computed in place, so that every value can be kept.
"""

from __future__ import annotations

import copy
import functools
import itertools
import operator
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from morphir.ir.channels import Value
from morphir.ir.graph import Graph
from morphir.runtime.learning.folded_norm import FoldedNorm


@dataclass(frozen=True)
class WorkingCopy:
    """The copied program, open for edits.

    Attributes:
        module: The program; shares modules and parameters with the graph.
        nodes: Node name in the graph to the node that computes its value now.
        values: What the analysis found about each node's value.
        folded: The folded operators.
        overwritten: Node to the node that computes what is written over its value.
    """

    module: fx.GraphModule
    nodes: dict[str, fx.Node]
    values: dict[fx.Node, tuple[Value, ...]]
    folded: dict[fx.Node, FoldedNorm] = field(default_factory=dict[fx.Node, FoldedNorm])
    overwritten: dict[fx.Node, fx.Node] = field(default_factory=dict[fx.Node, fx.Node])
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def leaf(self, node: fx.Node) -> nn.Module | None:
        """Returns the module that a ``call_module`` node calls."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def read_by(self, reader: fx.Node, name: str) -> fx.Node:
        """Returns the node whose value a reader finds under a node's name in the graph."""
        node, read = self.nodes[name], set(reader.all_input_nodes)
        while node not in read and node in self.overwritten:
            node = self.overwritten[node]
        return node if node in read else self.nodes[name]

    def linear_leaf(self, node: fx.Node) -> nn.Module | None:
        """Returns the module that a ``call_module`` node called before a batch norm was folded in."""
        return self.folded[node].parts[0] if node in self.folded else self.leaf(node)

    def attribute(self, node: fx.Node) -> object:
        """Returns what a ``get_attr`` node reads."""
        return functools.reduce(getattr, str(node.target).split("."), self.module)

    def activations(self) -> set[fx.Node]:
        """Returns the nodes that depend on the model's inputs; the others are computed from parameters."""
        found: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
                found.add(node)
        return found

    def replace(self, node: fx.Node, module: nn.Module) -> None:
        """Makes a ``call_module`` node, here or in a part of the program, call another module."""
        path = f"_morphir_{next(self._numbers)}"
        self.module.add_submodule(path, module)
        node.target = path

    @contextmanager
    def separated(self, program: fx.Graph) -> Generator[None]:
        """Lets lists of numbers that buffers hold be rewritten in a part of the program, and nowhere else.

        What is not rewritten is read where it was, so that a change of it is seen.
        """
        copies: list[tuple[fx.Node, str, torch.Tensor, Any]] = []
        for node in program.nodes:
            held = self.attribute(node) if node.op == "get_attr" else None
            if isinstance(held, torch.Tensor) and held.dim() == 1 and not held.is_floating_point():
                path = f"_morphir_{next(self._numbers)}"
                self.module.register_buffer(path, held.clone())
                copies.append((node, path, self.module.get_buffer(path), node.target))
                node.target = path
        yield
        for node, path, copied, target in copies:
            if self.module.get_buffer(path) is copied:
                node.target = target
                delattr(self.module, path)


def only_input(node: fx.Node) -> fx.Node | None:
    """Returns the node whose value is all that a node reads."""
    given = (*node.args, *node.kwargs.values())
    return given[0] if len(given) == 1 and isinstance(given[0], fx.Node) else None


def working_copy(graph: Graph) -> WorkingCopy:
    """Copies a graph's program, with nothing computed in place."""
    program = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    output = program.graph_copy(graph.graph, copied)
    program.output(output)
    module = fx.GraphModule(graph, program)
    module.training = False
    originals = {new: old for old, new in copied.items()}
    # GraphModule takes over the graph that it is given, nodes included.
    nodes = {originals[node].name: node for node in module.graph.nodes if node in originals}
    values = {node: graph.channels.values.get(name, ()) for name, node in nodes.items()}
    work = WorkingCopy(module, nodes, values)
    _undo_in_place(work)
    return work


def _undo_in_place(work: WorkingCopy) -> None:
    for node in list(work.module.graph.nodes):
        leaf = work.leaf(node)
        if leaf is not None and getattr(leaf, "inplace", False) is True:
            twin = copy.copy(leaf)
            twin.__dict__["inplace"] = False
            twin.training = False
            work.replace(node, twin)
            _follow_writes(work, node)
        elif node.kwargs.get("inplace") is True:
            node.update_kwarg("inplace", False)
            _follow_writes(work, node)
        elif (pure := _pure_form(node)) is not None:
            node.op = "call_method" if isinstance(pure, str) else "call_function"
            node.target = pure
            _follow_writes(work, node)


def _copied(tensor: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    del non_blocking
    return source.to(tensor.dtype).expand_as(tensor)


_PURE_METHODS: dict[str, Callable[..., Any]] = {
    "copy_": _copied,
    "zero_": torch.zeros_like,
    "fill_": torch.full_like,
}


def _pure_form(node: fx.Node) -> str | Callable[..., Any] | None:
    """Returns the out-of-place form of ``add_`` and the like."""
    if node.op == "call_method":
        name = str(node.target)
        if name in _PURE_METHODS:
            return _PURE_METHODS[name]
        pure = name.removesuffix("_")
        return (
            pure if name.endswith("_") and not name.endswith("__") and hasattr(torch.Tensor, pure) else None
        )
    if node.target is operator.setitem:
        return _assigned
    if node.op == "call_function" and not isinstance(node.target, str):
        name = getattr(node.target, "__name__", "")
        home = torch if getattr(torch, name, None) is node.target else torch.nn.functional
        if name.endswith("_") and getattr(home, name, None) is node.target:
            return getattr(home, name.removesuffix("_"), None)
    return None


def _assigned(tensor: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    result = tensor.clone()
    result[index] = value
    return result


def _follow_writes(work: WorkingCopy, node: fx.Node) -> None:
    """Whoever read the overwritten value after the write now reads what was written."""
    written = node.args[0] if node.args else node.kwargs.get("input")
    if isinstance(written, fx.Node):
        written.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node and node < user)
        work.overwritten[written] = node
        work.values[node] = work.values[written]
