"""Which nodes are a mixing operator's own parameters, and which are data that it reads.

``conv2d(x, weight / norm)`` reads two nodes; one of them is its kernel, taken from the model's parameters.
Data need not depend on the model's inputs: a small network over a buffer of coordinates is data as well.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx


def parameter_nodes(program: fx.Graph, mixing: Collection[str]) -> set[fx.Node]:
    """Returns the nodes whose values are parameters, moved or reckoned from parameters alone.

    Args:
        program: Any program.
        mixing: Names of the nodes that mix channels: what they yield are activations.
    """
    found: set[fx.Node] = set()
    for node in program.nodes:
        if node.op == "get_attr" or (_is_arithmetic(node, mixing) and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def _is_arithmetic(node: fx.Node, mixing: Collection[str]) -> bool:
    return (
        node.op in {"call_function", "call_method"} and bool(node.all_input_nodes) and node.name not in mixing
    )
