"""How much of a network lies above a space: the layers that bend the response to a finite change."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import fx

from morphir.ir.channels import ChannelSpace
from morphir.runtime.learning.working_copy import WorkingCopy


def layers_above(spaces: Iterable[ChannelSpace], work: WorkingCopy) -> dict[str, int]:
    """Returns, for every space, how many mixing operators lie between what reads its channels and an output.

    Of several paths the shortest counts: what goes by a residual connection is not bent. The operators that
    read the channels respond linearly and do not count: a classifier's last hidden layer has 0 layers above,
    the first of its ``n`` hidden layers ``n - 1``. Sizes and other numbers are no way to an output.

    Args:
        spaces: All spaces of the graph; their producers and consumers are the mixing operators.
        work: The program, in which nothing is written in place.
    """
    spaces = tuple(spaces)
    ends = ((*space.producers, *space.consumers) for space in spaces)
    mixing = {work.nodes[end.node] for own in ends for end in own}
    above: dict[fx.Node, float] = {}
    for node in reversed(work.module.graph.nodes):
        ways = (above[user] + (user in mixing) for user in node.users if _holds_tensors(work, user))
        above[node] = 0 if node.op == "output" else min(ways, default=math.inf)
    found = {
        space.name: min((above[work.nodes[consumer.node]] for consumer in space.consumers), default=math.inf)
        for space in spaces
    }
    return {name: int(count) if math.isfinite(count) else 0 for name, count in found.items()}


def _holds_tensors(work: WorkingCopy, node: fx.Node) -> bool:
    return node.op == "output" or bool(work.values.get(node, True))
