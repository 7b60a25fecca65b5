"""``EliminateDeadCode``: removes nodes whose value nothing reads.

A node goes only if it cannot do anything else: in-place methods, assignments, guards, users' functions that
are kept whole, and modules with state (a batch norm in training mode writes its running statistics) stay.
Parameters stay too, so that the ``state_dict`` keys are the model's.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import ClassVar

from torch import fx, nn

from morphir.analysis.spaces import analyse
from morphir.ir.graph import Graph
from morphir.ir.guards import is_guard
from morphir.ir.operators import AUGMENTED
from morphir.ir.remarks import Remark
from morphir.ir.source import source_of
from morphir.ir.state import own_state
from morphir.ir.wrapped import is_wrapped
from passes.base import Pass, PassResult
from passes.rewriter import Rewriter


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Removes unread values, last first, until none is left."""

    name: ClassVar[str] = "eliminate-dead-code"

    def apply(self, rewriter: Rewriter) -> PassResult:
        """Removes the nodes from a copy of the program, which then takes the program's place."""
        program = copy.deepcopy(rewriter.graph.graph)
        remarks: list[Remark] = []
        for node in reversed(program.nodes):
            if not node.users and _is_pure(rewriter.graph, node):
                remarks.append(
                    Remark("applied", "dead-code", "never read", node=node.name, source=source_of(node))
                )
                program.erase_node(node)
        if not remarks:
            return PassResult()
        rewriter.replace_program(program)
        rewriter.graph.attach(analyse(rewriter.graph))
        return PassResult(remarks=tuple(remarks))


def _is_pure(graph: Graph, node: fx.Node) -> bool:
    if (
        node.op in {"placeholder", "output"}
        or is_guard(node)
        or is_wrapped(node)
        or node.kwargs.get("out") is not None
        or node.kwargs.get("inplace") is True
    ):
        return False
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return not _has_buffers(module) and getattr(module, "inplace", False) is not True
    if node.op == "call_method":
        return not str(node.target).endswith("_")
    name = getattr(node.target, "__name__", "")
    writes = node.target is operator.setitem or node.target in AUGMENTED or name.endswith("_")
    return node.op == "get_attr" or not writes


def _has_buffers(module: nn.Module) -> bool:
    return any(not isinstance(tensor, nn.Parameter) for tensor in own_state(module).values())
