"""How much of a network lies above a space: the layers that bend the response to a finite change."""

from __future__ import annotations

import math

from torch import fx

from morphir.ir.graph import Graph


def layers_above(graph: Graph) -> dict[str, int]:
    """Returns, for every space, how many mixing operators lie between what reads its channels and an output.

    Of several paths the shortest counts: what goes by a residual connection is not bent. The operators that
    read the channels respond linearly and do not count: a classifier's last hidden layer has 0 layers above,
    the first of its ``n`` hidden layers ``n - 1``.
    """
    mixing = {consumer.node for space in graph.spaces.values() for consumer in space.consumers}
    above: dict[fx.Node, float] = {}
    for node in reversed(graph.graph.nodes):
        ways = (above[user] + (user.name in mixing) for user in node.users)
        above[node] = 0 if node.op == "output" else min(ways, default=math.inf)
    by_name = {node.name: count for node, count in above.items()}
    found = {
        space.name: min((by_name[consumer.node] for consumer in space.consumers), default=math.inf)
        for space in graph.spaces.values()
    }
    return {name: int(count) if math.isfinite(count) else 0 for name, count in found.items()}
