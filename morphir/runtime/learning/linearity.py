"""Whether an operator that no table knows is linear in its kernel: tried on the program's own values."""

from __future__ import annotations

import torch
from torch import fx

from morphir.ir.graph import Graph
from morphir.runtime.learning.observation import observe, random_inputs
from morphir.runtime.learning.producer_ops import LinearOp
from morphir.runtime.learning.working_copy import WorkingCopy

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


@torch.no_grad()
def is_linear(graph: Graph, work: WorkingCopy, node: fx.Node, op: LinearOp, kernel: torch.Tensor) -> bool:
    """Whether ``op(a + b) = op(a) + op(b)`` on random kernels.

    Args:
        graph: The graph, for its example inputs.
        work: Its program.
        node: The node that the operator is; one that yields several values at once is none.
        op: The operator.
        kernel: The kernel that it has in the program.
    """
    found = observe(graph, work, random_inputs(graph), lambda value: value)
    if not isinstance(found[node], torch.Tensor):
        return False
    values = [found[source] for source in op.sources]
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randn(kernel.shape, generator=generator, dtype=torch.float64).to(kernel) for _ in range(2)
    )
    parts = op.apply(first, *values) + op.apply(second, *values)
    together = op.apply(first + second, *values)
    bound = _TOLERANCE.get(kernel.dtype, 1e-1) * float(parts.abs().max())
    return bool(((together - parts).abs() <= bound).all())
