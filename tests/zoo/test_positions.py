"""What hangs on positions: cuts through a group, lone groups over two dimensions, counts used as values.

Whatever the verdict, no rewrite that is accepted may change the function: each group is split alone, then all
at once, then twice, and compared with the untouched network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.morphisms.split import Split
from passes.transform import transform


class Net(nn.Module):
    """``a``, ``b``, ``c``: 1x1 convolutions; ``p``: one after a pixel shuffle; lazy ``l``; ``w``: a table."""

    def __init__(self, body: Callable[..., Any], channels: int) -> None:
        super().__init__()
        self.body = body
        self.a, self.c = nn.Conv2d(3, channels, 1), nn.Conv2d(3, channels, 1)
        self.b, self.p = nn.LazyConv2d(2, 1), nn.LazyConv2d(2, 1)
        self.l = nn.LazyLinear(2)
        self.w = nn.Parameter(torch.randn(40, channels))

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def shuffled(h: Tensor, groups: int) -> Tensor:
    n, c, height, width = h.shape
    return h.view(n, groups, c // groups, height, width).transpose(1, 2).reshape(n, c, height, width)


def crossed(m: Net, x: Tensor) -> Tensor:
    first, second = shuffled(m.a(x), 2).split([3, 5], 1)
    return m.b(torch.cat([second, first], 1))


def narrowed(m: Net, x: Tensor) -> Tensor:
    h = m.a(x).flatten(1)
    return m.l(torch.cat([h, h], 1).narrow(1, 1, h.shape[1]))


def two_layouts(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    h = m.a(x)
    return m.p(F.pixel_shuffle(h, 2)), m.b(h.view(h.shape[0], 2, 2, 4, 4).transpose(1, 2).flatten(1, 2))


def lone_group(m: Net, x: Tensor) -> Tensor:
    return m.l(m.a(x).flatten(1).view(x.shape[0], 4, 2, 2).transpose(1, 2).flatten(1))


CASES: dict[str, tuple[Callable[..., Any], int]] = {
    "split at other places": (crossed, 8),
    "chunks reversed": (lambda m, x: m.b(torch.cat(shuffled(m.a(x), 2).chunk(3, 1)[::-1], 1)), 8),
    "sections reversed": (lambda m, x: m.b(torch.cat(shuffled(m.a(x), 2).tensor_split(3, 1)[::-1], 1)), 8),
    "narrow across a flattened copy": (narrowed, 3),
    "flattened chunks reversed": (
        lambda m, x: m.l(torch.cat(m.a(x).flatten(1).chunk(3, 1)[::-1], 1)),
        3,
    ),
    "two layouts of one group": (two_layouts, 4),
    "a lone group over two dimensions": (lone_group, 1),
    "a lone group flipped": (lambda m, x: m.l(m.a(x).flatten(1).view(-1, 2, 8).flip(1).flatten(1)), 1),
    "a diagonal": (lambda m, x: m.l(m.a(x).diagonal(0, 1, 2).flatten(1)), 4),
    "a diagonal by function": (lambda m, x: m.l(torch.diagonal(m.a(x), 1, 1, 3).flatten(1)), 4),
    "a count as an index": (lambda m, x: m.a(x)[:, :, m.a(x).size(1) - 7].flatten(1).sum(1), 8),
    "a count as bounds": (lambda m, x: m.b(m.a(x)[:, :, m.a(x).size(1) - 8 : m.a(x).size(1) - 6]), 8),
    "a count in a list": (lambda m, x: m.b(m.a(x)[:, :, [m.a(x).size(1) - 7, 0]]), 8),
    "a count as a start": (lambda m, x: m.b(m.a(x).narrow(2, m.a(x).size(1) - 8, 2)), 8),
    "a count as a shift": (lambda m, x: m.b(m.a(x).roll(m.a(x).size(1) - 7, 2)), 8),
    "a count as a factor": (
        lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=1.2 + m.a(x).size(1) / 80, mode="bilinear")),
        8,
    ),
    "a count as an epsilon": (
        lambda m, x: m.b(F.layer_norm(m.a(x), m.a(x).shape[2:], eps=1 / m.a(x).size(1))),
        4,
    ),
    "a count as a row": (lambda m, x: m.b(m.a(x) + m.w[m.a(x).size(1)].view(1, -1, 1, 1)), 4),
    "a stride as a value": (lambda m, x: m.b(m.a(x) / m.a(x).stride(0)), 4),
    "bytes as a value": (lambda m, x: m.b(m.a(x) / m.a(x).nbytes), 4),
    "the shape of another": (lambda m, x: m.l(m.a(x).flatten(1).view_as(m.c(x).flatten(1))), 4),
    "an empty piece": (lambda m, x: m.b(m.a(x).split([0, 3, 5], 1)[2]), 8),
    "a negative share": (lambda m, x: m.b(m.a(x)[:, -(m.a(x).size(1) // 2) :]), 8),
}


def accepted(graph: Graph, plans: Iterator[list[Split]]) -> Iterator[Graph]:
    """Yields the rewritten copy for every plan that is accepted."""
    for plan in plans:
        changed = copy.deepcopy(graph)
        try:
            transform(changed, plan)
        except MorphirError:
            continue
        yield changed


def plans(graph: Graph) -> Iterator[list[Split]]:
    """Each exact group alone, then all of them."""
    every = [
        Split(name, index)
        for name, space in graph.spaces.items()
        for index, verdict in enumerate(space.verdicts)
        if verdict.kind == "exact"
    ]
    yield from ([split] for split in every)
    if every:
        yield every


@pytest.mark.parametrize("name", CASES)
def test_what_is_accepted_changes_nothing(name: str) -> None:
    body, channels = CASES[name]
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model = Net(body, channels).double()
    model(x)
    for part, layer in list(model.named_children()):
        if isinstance(layer, nn.modules.lazy.LazyModuleMixin):  # not called by this body
            delattr(model, part)
    graph = trace(model.eval(), x)
    with torch.no_grad():
        wanted = torch.cat([part.flatten() for part in torch.utils._pytree.tree_leaves(graph(x))])
        for once in accepted(graph, plans(graph)):
            for changed in (once, *accepted(once, plans(once))):
                found = [part.flatten() for part in torch.utils._pytree.tree_leaves(changed(x))]
                torch.testing.assert_close(torch.cat(found), wanted, rtol=1e-9, atol=1e-9)
