"""Runs of a graph for the oracle: repeatable in train mode; with some channels zeroed for consumers."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import fx
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from morphir.ir.graph import Graph
from morphir.ir.state import restore_modes, training_modes
from morphir.ir.trace import keywords_in_order
from morphir.ir.values import cloned, tensors
from morphir.runtime.oracle.remainder import Remainder, Removed

_DROPOUTS: frozenset[Any] = frozenset(
    {
        functional.dropout,
        functional.dropout1d,
        functional.dropout2d,
        functional.dropout3d,
        functional.alpha_dropout,
        functional.feature_alpha_dropout,
    }
)


class _WithoutDropout(TorchFunctionMode):
    """Lets dropout pass everything: its random mask has other extents once the channels are others."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _DROPOUTS:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def run_deterministic(
    program: Graph | ZeroedGraph,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    *,
    training: bool,
    seed: int,
) -> list[torch.Tensor]:
    """Runs a graph and returns its output tensors; its modes and buffers are the same again afterwards.

    Args:
        program: The graph, or a graph with zeroed channels.
        inputs: Positional and keyword inputs; copied, since operators may write to them.
        training: Whether in train mode. Dropout is off in either, other random draws are seeded.
        seed: Of those draws.
    """
    graph = program.graph if isinstance(program, ZeroedGraph) else program
    args, kwargs = cloned(inputs)
    with _mode(graph, training), _own_buffers(graph), _seeded(graph.device, seed), _WithoutDropout():
        outputs = program(*args, **kwargs)
    return tensors(outputs)


@contextmanager
def _mode(graph: Graph, training: bool) -> Generator[None]:
    modes = training_modes(graph)
    graph.train(training)
    try:
        yield
    finally:
        restore_modes(graph, modes)


@contextmanager
def _own_buffers(graph: Graph) -> Generator[None]:
    """Lets a run write to copies of the buffers, as batch norms do in train mode."""
    every = (module._buffers for module in graph.modules())  # pyright: ignore[reportPrivateUsage]
    # A ScriptModule's are no table of Python's, and stay.
    tables = [table for table in every if isinstance(cast("object", table), dict)]
    originals = [dict(table) for table in tables]
    copies = {id(tensor): cloned(tensor) for table in originals for tensor in table.values()}
    for table in tables:
        table.update({name: copies[id(tensor)] for name, tensor in table.items()})
    try:
        yield
    finally:
        for table, original in zip(tables, originals, strict=True):
            table.update(original)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Generator[None]:
    """Seeds torch inside, and leaves the caller's random state alone."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        yield


class ZeroedGraph:
    """A graph that runs as if some channel groups contributed nothing to any consumer."""

    def __init__(self, graph: Graph, removed: Removed, mixing: Collection[str]) -> None:
        self.graph = graph
        self.removed = removed
        self.mixing = mixing

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program."""
        inputs = [*args, *keywords_in_order(self.graph, len(args), kwargs)]
        return _Zeroing(self.graph, self.removed, self.mixing).run(*inputs)


def zeroed(graph: Graph, removed: Removed, mixing: Collection[str] = ()) -> Graph | ZeroedGraph:
    """Returns a program in which every consumer reads zeros for the removed groups.

    Args:
        graph: The original; not changed.
        removed: Space name to group indices.
        mixing: Names of the nodes that mix channels without being consumers: they see only what is left.
            Where one cannot, running the program raises :class:`IncomparableError`.
    """
    return ZeroedGraph(graph, removed, mixing) if removed else graph


class _Zeroing(fx.Interpreter):
    """Multiplies what a consumer reads by 0 at the positions of removed groups."""

    def __init__(self, graph: Graph, removed: Removed, mixing: Collection[str]) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.mixing = mixing
        self.remainder = Remainder(graph, removed)
        self.positions: dict[tuple[str, str], list[tuple[int, list[int]]]] = {}
        for name, groups in removed.items():
            for consumer in graph.space(name).consumers:
                found = [at for at, group in enumerate(consumer.groups) if group in groups]
                key = (consumer.node, consumer.tensor)
                if found:
                    self.positions.setdefault(key, []).append((consumer.dim, found))

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node: on partly zeroed copies if it is a consumer, on what is left if it mixes."""
        if n.name in self.mixing:
            return self.remainder.run(n, self.env, super().run_node)
        originals = {
            source: self.env[source]
            for source in n.all_input_nodes
            if (n.name, source.name) in self.positions
        }
        for source, value in originals.items():
            self.env[source] = self._zeroed(n.name, source.name, value)
        try:
            return super().run_node(n)
        finally:
            self.env.update(originals)

    def _zeroed(self, node: str, tensor: str, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        for dim, positions in self.positions[node, tensor]:
            value.index_fill_(dim, torch.tensor(positions, dtype=torch.long, device=value.device), 0)
        return value
