"""A space's region as a program of its own: from the producers' outputs y to the consumers' inputs a."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx, nn

from morphir.runtime.learning.simplify import is_relu
from morphir.runtime.learning.working_copy import WorkingCopy

RegionKind = Literal["relu", "general"]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_SIZED = frozenset({"view", "reshape", "expand", "unflatten", "broadcast_to"})


@dataclass(frozen=True)
class Region:
    """The channelwise operators between producers and consumers.

    Attributes:
        module: ``module(*ys, *externals)`` returns one tensor for each edge.
        externals: Nodes of the working copy whose values the region reads besides y.
        stackable: Whether several batches may be stacked along dimension 0 and run as one.
        kind: ``"relu"`` where the whole region is one ReLU.
    """

    module: fx.GraphModule
    externals: tuple[fx.Node, ...]
    stackable: bool
    kind: RegionKind


def extract_region(
    work: WorkingCopy, space: str, outputs: Sequence[fx.Node], edges: Sequence[fx.Node]
) -> Region:
    """Cuts a space's region out of the program.

    Args:
        work: The program.
        space: Name of the space.
        outputs: The producers' outputs y.
        edges: The nodes whose values a the consumers read.
    """
    inside, externals = _Walk(work, space, outputs).run(edges)
    program = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in (*outputs, *externals):
        copied[node] = program.placeholder(node.name)
    ordered = [node for node in work.module.graph.nodes if node in inside]
    for node in ordered:
        copied[node] = program.node_copy(node, lambda n: copied[n])
    program.output(tuple(copied[edge] for edge in edges))
    module = fx.GraphModule(work.module, program)
    module.training = False
    stackable = not externals and all(_keeps_samples_apart(work, node) for node in ordered)
    return Region(module, tuple(externals), stackable, _kind(work, ordered, edges))


class _Walk:
    """Walks from the edges back to the producers."""

    def __init__(self, work: WorkingCopy, space: str, outputs: Sequence[fx.Node]) -> None:
        self.work = work
        self.space = space
        self.outputs = frozenset(outputs)

    def run(self, edges: Sequence[fx.Node]) -> tuple[set[fx.Node], list[fx.Node]]:
        """Returns the nodes inside, and the nodes outside that these read."""
        inside: set[fx.Node] = set()
        externals: dict[fx.Node, None] = {}
        waiting = list(edges)
        while waiting:
            node = waiting.pop()
            if node in inside or node in externals or node in self.outputs:
                continue
            if self._belongs(node):
                inside.add(node)
                waiting.extend(node.all_input_nodes)
            else:
                externals[node] = None
        return inside, list(externals)

    def _carries(self, node: fx.Node) -> bool:
        return any(
            layout.space == self.space for value in self.work.values.get(node, ()) for layout in value.layouts
        )

    def _belongs(self, node: fx.Node) -> bool:
        """Channels of the space, parameters, and sizes that are read off the space's own tensors."""
        if node.op == "placeholder":
            return False
        if node.op == "get_attr" or node in self.outputs or self._carries(node):
            return True
        return not self.work.values.get(node, ()) and any(map(self._belongs, node.all_input_nodes))


def _keeps_samples_apart(work: WorkingCopy, node: fx.Node) -> bool:
    """Whether the batch may grow: no literal batch size, no statistics over the batch."""
    leaf = work.leaf(node)
    if isinstance(leaf, _NORMS):
        return leaf.running_mean is not None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name not in _SIZED:
        return True
    first = node.args[1] if len(node.args) > 1 else next(iter(node.kwargs.values()), None)
    first = first[0] if isinstance(first, (tuple, list)) and first else first
    return not (isinstance(first, int) and first > 0)


def _kind(work: WorkingCopy, nodes: Sequence[fx.Node], edges: Sequence[fx.Node]) -> RegionKind:
    calls = [node for node in nodes if node.op != "get_attr"]
    return "relu" if len(edges) == 1 and calls == list(edges) and is_relu(work, calls[0]) else "general"
