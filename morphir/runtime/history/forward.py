"""What a graph computes at two points: the outputs' largest difference, and the first node that differs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from exporters.inputs import random_inputs
from morphir.ir.graph import Graph
from morphir.ir.source import located, source_of
from morphir.ir.state import evaluation_mode
from morphir.ir.trace import keywords_in_order
from morphir.ir.values import cloned, tensors

Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]


def tolerance_of(graph: Graph) -> float:
    """Returns how far outputs may differ, relative to the largest, that are the same but for rounding."""
    return 1e-9 if graph.dtype == torch.float64 else 1e-4


@dataclass(frozen=True)
class NodeValues:
    """What every node yields on some inputs.

    Attributes:
        values: Node name to its tensors, in program order; the last is the output's.
        held: Node name to the spaces whose channels its tensors hold.
        sources: Node name to the user's line, as text.
        parameters: Names of the nodes that read a parameter or buffer.
    """

    values: Mapping[str, tuple[torch.Tensor, ...]]
    held: Mapping[str, frozenset[str]]
    sources: Mapping[str, str | None]
    parameters: frozenset[str]

    @property
    def outputs(self) -> tuple[torch.Tensor, ...]:
        """The program's outputs."""
        return self.values[list(self.values)[-1]]


class _Recording(fx.Interpreter):
    """Notes what every node yields; copies, since a later node may write into it."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.found: dict[str, tuple[torch.Tensor, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.found[n.name] = tuple(tensor.detach().clone() for tensor in tensors(value))
        return value


def run_nodes(graph: Graph, inputs: Inputs | None = None) -> NodeValues:
    """Runs a graph in evaluation mode.

    Args:
        graph: The graph; left as it is.
        inputs: Positional and keyword inputs; random ones, always the same, where None.
    """
    args, kwargs = cloned(inputs or random_inputs(graph.inputs, graph.device))
    recording = _Recording(graph)
    with torch.no_grad(), evaluation_mode(graph):
        recording.run(*args, *keywords_in_order(graph, len(args), kwargs))
    held = {
        name: frozenset(layout.space for value in values for layout in value.layouts)
        for name, values in graph.channels.values.items()
    }
    sources = {node.name: None if (s := source_of(node)) is None else str(s) for node in graph.graph.nodes}
    parameters = frozenset(node.name for node in graph.graph.nodes if node.op == "get_attr")
    return NodeValues(recording.found, held, sources, parameters)


@dataclass(frozen=True)
class Comparison:
    """How the outputs of two points differ.

    Attributes:
        absolute: The largest absolute difference of the outputs; infinite where their shapes differ.
        relative: The largest over the largest absolute value, output by output.
        node: The first node whose value differs by more than the tolerance; None where the outputs do not.
        source: The user's line that made it.
    """

    absolute: float
    relative: float
    node: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        first = f"; first differs{located(self.node, self.source)}" if self.node else ""
        return f"max difference {self.absolute:.3g} absolute, {self.relative:.3g} relative{first}"


def compare(old: NodeValues, new: NodeValues, changed: Collection[str], tolerance: float) -> Comparison:
    """Compares two points.

    Args:
        old: What the nodes yielded.
        new: What they yield.
        changed: Spaces that were rewritten in between; the tensors that hold their channels are not compared.
        tolerance: Relative difference from which on a node differs.
    """
    absolute = _largest(old.outputs, new.outputs, relative=False)
    relative = _largest(old.outputs, new.outputs, relative=True)
    if relative <= tolerance:
        return Comparison(absolute, relative)
    node = next((n for n in new.values if _differs(n, old, new, changed, tolerance)), None)
    return Comparison(absolute, relative, node, None if node is None else new.sources.get(node))


def _differs(name: str, old: NodeValues, new: NodeValues, changed: Collection[str], tolerance: float) -> bool:
    if (
        name not in old.values
        or name in new.parameters
        or new.held.get(name, frozenset()).intersection(changed)
    ):
        return False
    difference = _largest(old.values[name], new.values[name], relative=True)
    return tolerance < difference < float("inf")


def _largest(old: tuple[torch.Tensor, ...], new: tuple[torch.Tensor, ...], *, relative: bool) -> float:
    if [tuple(t.shape) for t in old] != [tuple(t.shape) for t in new]:
        return float("inf")
    return max((_difference(a, b, relative=relative) for a, b in zip(old, new, strict=True)), default=0.0)


def _difference(old: torch.Tensor, new: torch.Tensor, *, relative: bool) -> float:
    if not old.numel() or torch.equal(old, new):
        return 0.0
    wide = torch.complex128 if old.is_complex() else torch.float64
    left, right = old.to(wide), new.to(wide)
    found = float((left - right).abs().max())
    if found != found:
        return float("inf")
    return found / max(float(left.abs().max()), torch.finfo(torch.float64).tiny) if relative else found
