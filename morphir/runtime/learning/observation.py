"""What the program's values are on random example inputs, where their shapes alone do not tell enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import fx
from torch.utils import _pytree as pytree

from morphir.ir.graph import Graph
from morphir.ir.state import evaluation_mode
from morphir.ir.trace import keywords_in_order
from morphir.runtime.learning.working_copy import WorkingCopy

T = TypeVar("T")
Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]


def random_inputs(graph: Graph) -> Inputs:
    """Returns inputs like the example inputs; integers are 0, since they may be indices."""
    generator = torch.Generator().manual_seed(0)

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if not leaf.is_floating_point():
            return torch.zeros_like(leaf)
        return torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)

    return pytree.tree_map(draw, graph.inputs.materialise(graph.device))


def batch_size(inputs: Inputs) -> int:
    """Returns the leading extent of the first tensor; 1 where there is none."""
    leaves = pytree.tree_leaves(inputs)
    return next((x.shape[0] for x in leaves if isinstance(x, torch.Tensor) and x.dim()), 1)


@torch.no_grad()
def observe(graph: Graph, work: WorkingCopy, inputs: Inputs, look: Callable[[Any], T]) -> Mapping[fx.Node, T]:
    """Runs the program in evaluation mode, the same random draws each time.

    Args:
        graph: The graph.
        work: Its program.
        inputs: What to run it on.
        look: What to keep of each node's value.
    """
    args, kwargs = inputs
    values = [*args, *keywords_in_order(graph, len(args), kwargs)]
    observer = _Observer(work.module, look)
    devices = [graph.device] if graph.device.type == "cuda" else []
    with evaluation_mode(graph), torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
        observer.run(*values)
    return observer.seen


def weighted_sums(value: Any) -> list[torch.Tensor]:
    """Returns, for every dimension, weighted sums over all others: they tell which slices changed.

    Random weights, since plain sums of what a softmax or a layer norm returns never change.
    """
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
        return []
    weights = torch.rand(value.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, rank = value * weights.to(value), value.dim()
    return [value.sum([d for d in range(rank) if d != dim]) if rank > 1 else value for dim in range(rank)]


class _Observer(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, look: Callable[[Any], Any]) -> None:
        super().__init__(module)
        self.look = look
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node, and looks at its value."""
        result = super().run_node(n)
        self.seen[n] = self.look(result)
        return result
