"""How much of a network lies above a space: the layers that bend the response to a finite change."""

from __future__ import annotations

from torch import fx

from morphir.ir.graph import Graph


def layers_above(graph: Graph) -> dict[str, int]:
    """Returns, for every space, how many mixing operators lie between what reads its channels and an output.

    Of several paths the longest counts. The operators that read the channels respond linearly and do not
    count: a classifier's last hidden layer has 0 layers above, the first of its ``n`` hidden layers
    ``n - 1``.
    """
    mixing = {consumer.node for space in graph.spaces.values() for consumer in space.consumers}
    above: dict[fx.Node, int] = {}
    for node in reversed(graph.graph.nodes):
        above[node] = max((above[user] + (user.name in mixing) for user in node.users), default=0)
    by_name = {node.name: count for node, count in above.items()}
    return {
        space.name: max((by_name[consumer.node] for consumer in space.consumers), default=0)
        for space in graph.spaces.values()
    }
