"""Functions that ``torch.fx.wrap`` keeps whole: the program does not hold their inside, so they are tried.

A literal, a size or a condition inside such a function is out of sight of the rules. Where the channels that
it reads are copied, it has to yield the same copies: it is run on numbers, alone, before and after, with its
training flag on and off. A trace tries it on doubled channels, to know whether to trace into it; every
rewrite tries it on its own copies, which is the proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, cast

import torch
from torch import fx
from torch.fx.node import map_arg

from morphir.analysis.numbers import evaluate
from morphir.ir.channels import ChannelSpace, Value
from morphir.ir.graph import Graph
from morphir.ir.index_map import Copies
from morphir.ir.quiet import failing_quietly, fixed_randomness
from morphir.ir.state import attribute
from morphir.ir.values import leaves
from morphir.ir.wrapped import is_wrapped

_STEP = 0.6180339887498949
"""The golden ratio's fraction: its multiples, modulo 1, are spread evenly and never repeat."""


def not_alike(graph: Graph) -> dict[str, set[str]]:
    """Returns the wrapped functions that do not treat all channels alike.

    Args:
        graph: A traced and analysed graph; left as it was.

    Returns:
        The name of each node that calls one, to the spaces whose channels it reads or yields.
    """
    found: dict[str, set[str]] = {}
    for call in _calls(graph):
        spaces = call.spaces()
        if not all(map(call.follows, _trials(spaces))):
            found[call.node.name] = set(spaces)
    return found


def changed_by(graph: Graph, copies: Copies) -> fx.Node | None:
    """Returns the first call of a wrapped function that a rewrite would change; None where there is none.

    Args:
        graph: The graph, with its channel layer of before the rewrite.
        copies: Space name to the number of copies of each of its groups.
    """
    for call in _calls(graph):
        changed = {name: copies[name] for name in call.spaces() if name in copies}
        if changed and not call.follows(changed):
            return call.node
    return None


def unlike(node: fx.Node) -> str:
    """Says of a call what is wrong with it."""
    name = getattr(node.target, "__name__", node.target)
    return f"{name} is kept whole, and does not yield copies of channels where it reads copies"


def _calls(graph: Graph) -> Iterator[_Call]:
    """Yields the calls of wrapped functions that read or yield channels; of those alike in all, the first."""
    seen: set[Any] = set()
    spread = lru_cache(maxsize=1)(_spread)
    for node in filter(is_wrapped, graph.graph.nodes):
        call = _Call(graph, node, spread)
        if call.spaces() and (key := call.key()) not in seen:
            seen.add(key)
            yield call


def _trials(spaces: Mapping[str, ChannelSpace]) -> Iterator[Copies]:
    """Doubles every channel, which leaves means as they are; then some of those that are exact."""
    yield {name: [2] * space.width for name, space in spaces.items()}
    yield {
        name: [2 if v.kind == "exact" and group % 4 < 2 else 1 for group, v in enumerate(space.verdicts)]
        for name, space in spaces.items()
    }


@dataclass(frozen=True)
class _Call:
    graph: Graph
    node: fx.Node
    spread: Callable[[tuple[int, ...]], torch.Tensor]

    def key(self) -> tuple[Any, ...]:
        """Returns what tells this call's behaviour from others'."""
        values = self.graph.channels.values
        read = tuple(values[source.name] for source in self.node.all_input_nodes)
        literals = repr(map_arg((self.node.args, self.node.kwargs), lambda node: None))
        return self.node.target, literals, read, values[self.node.name]

    def spaces(self) -> dict[str, ChannelSpace]:
        """Returns the spaces, not wholly frozen, whose channels the function reads or yields."""
        values = self.graph.channels.values
        around = [value for node in (*self.node.all_input_nodes, self.node) for value in values[node.name]]
        names = dict.fromkeys(layout.space for value in around for layout in value.layouts)
        spaces = {name: self.graph.spaces[name] for name in names}
        return {
            name: space
            for name, space in spaces.items()
            if any(verdict.kind != "frozen" for verdict in space.verdicts)
        }

    def follows(self, copies: Copies) -> bool:
        """Whether copies of what is read yield copies of what is yielded."""
        flags = (False, True) if self._reads_flag() else (False,)
        return all(self._follows(copies, training) for training in flags)

    def _reads_flag(self) -> bool:
        return any(_is_flag(source) for source in self.node.all_input_nodes)

    def _follows(self, copies: Copies, training: bool) -> bool:
        try:
            before = self._run({}, training)
            after = self._run(copies, training)
        except Exception:
            # Whatever it raises, nothing is known about it.
            return False
        values = self.graph.channels.values[self.node.name]
        if not len(before) == len(after) == len(values):
            return False
        wanted = [_copied(tensor, value, copies) for tensor, value in zip(before, values, strict=True)]
        return all(map(_alike, wanted, after))

    def _run(self, copies: Copies, training: bool) -> list[torch.Tensor]:
        args, kwargs = map_arg(
            (self.node.args, self.node.kwargs),
            lambda node: training if _is_flag(node) else self._given(node, copies),
        )
        function = cast("Callable[..., Any]", self.node.target)
        with torch.no_grad(), fixed_randomness(), failing_quietly():
            result = function(*cast("tuple[Any, ...]", args), **cast("dict[str, Any]", kwargs))
        return [leaf for leaf in leaves(result) if isinstance(leaf, torch.Tensor)]

    def _given(self, node: fx.Node, copies: Copies) -> Any:
        """Returns numbers in the place of a value that the function reads."""
        values = self.graph.channels.values
        found = [_copied(self._numbers(node, value), value, copies) for value in values[node.name]]
        if found:
            return found[0] if len(found) == 1 else tuple(found)

        number = evaluate(node, lambda name: self.graph.channels.extents(name, copies))
        if number is None:
            raise ValueError(f"%{node.name} is no number that sizes tell")
        return number

    def _numbers(self, node: fx.Node, value: Value) -> torch.Tensor:
        if node.op == "get_attr" and not value.dtype.is_floating_point:
            held = cast("torch.Tensor", attribute(self.graph, str(node.target)))
            if not held.is_meta:
                return held.cpu()
        # A copy: the function may write into what it gets.
        dtype = torch.float64 if value.dtype.is_floating_point else value.dtype
        return self.spread(value.shape).to(dtype, copy=True)


def _spread(shape: tuple[int, ...]) -> torch.Tensor:
    return (torch.arange(prod(shape), dtype=torch.float64) * _STEP % 1 - 0.4).reshape(shape)


def _is_flag(node: fx.Node) -> bool:
    return node.op == "get_attr" and node.target == "training"


def _copied(tensor: torch.Tensor, value: Value, copies: Copies) -> torch.Tensor:
    for dim in {layout.dim for layout in value.layouts if layout.space in copies}:
        counts = torch.tensor(value.copies_along(dim, copies))
        tensor = tensor.index_select(dim, torch.arange(len(counts)).repeat_interleave(counts))
    return tensor


def _alike(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.shape != right.shape:
        return False
    return torch.equal(left, right) or torch.allclose(left, right, rtol=1e-9, atol=1e-12, equal_nan=True)
