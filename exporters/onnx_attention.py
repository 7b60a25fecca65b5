"""Attention without a dimension of heads: torch's ONNX form of ``scaled_dot_product_attention`` wants one."""

from __future__ import annotations

from torch import fx
from torch.nn import functional

from morphir.ir.graph import Graph

_RANK = 4


def with_heads(graph: Graph) -> Graph:
    """Gives attention on values of fewer than four dimensions a single head.

    Args:
        graph: Changed in place, and returned; the channel layer stays that of the program before.
    """
    changed = False
    for node in list(graph.graph.nodes):
        if node.target is functional.scaled_dot_product_attention and node.args:
            missing = _RANK - _rank(graph, node.args[0])
            for _ in range(missing):
                _add_head(graph, node)
            changed |= missing > 0
    if changed:
        graph.recompile()
    return graph


def _add_head(graph: Graph, node: fx.Node) -> None:
    """Computes ``attention(q, k, v)`` as that of one head: a dimension before the last two."""
    program = graph.graph
    with program.inserting_before(node):
        node.args = tuple(
            program.call_method("unsqueeze", (argument, -3)) if isinstance(argument, fx.Node) else argument
            for argument in node.args
        )
        mask = node.kwargs.get("attn_mask")
        if isinstance(mask, fx.Node) and _rank(graph, mask) > 2:
            node.update_kwarg("attn_mask", program.call_method("unsqueeze", (mask, -3)))
    with program.inserting_after(node):
        without = program.call_method("squeeze", (node, -3))
    node.replace_all_uses_with(without, delete_user_cb=lambda user: user is not without)


def _rank(graph: Graph, value: object) -> int:
    """Returns how many dimensions a node's value has; as many as wanted where that is not known."""
    values = graph.channels.values.get(value.name, ()) if isinstance(value, fx.Node) else ()
    return len(values[0].shape) if len(values) == 1 else _RANK
