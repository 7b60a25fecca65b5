"""The one place that mutates a graph: applies index maps to tensors, literals, gradients and moments.

The order is what makes a rewrite all-or-nothing and proven: first ``rewrite_program``, which rewrites what is
no tensor and proves that the program follows; only then the tensors.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn, optim

from morphir.analysis.axis_map import AxisMap
from morphir.analysis.rewritten import rewrite_program
from morphir.analysis.wrapped_functions import changed_by, unlike
from morphir.errors import RewriteError
from morphir.ir.channels import ChannelLayer
from morphir.ir.codes import suggestion_for
from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap, Rewrite, copies_of
from morphir.ir.source import source_of
from morphir.ir.state import named_state, own_state
from passes.all_or_nothing import all_or_nothing
from passes.instruments import PendingRewrite, active, tell_all
from passes.moments import powers_of, replace_parameters
from passes.snapshot import Snapshot
from passes.tensors import full_theta, perturbed, rewrite_gradient, rewrite_tensor


class Rewriter:
    """Applies index maps to one graph, and to the optimizer that trains it.

    Args:
        graph: The graph to change in place.
        optimizer: The optimizer that holds the graph's parameters, if any.
        in_pipeline: Whether a pass manager puts everything back where a pass fails.
    """

    def __init__(
        self, graph: Graph, optimizer: optim.Optimizer | None = None, *, in_pipeline: bool = False
    ) -> None:
        self.graph = graph
        self.optimizer = optimizer
        self._in_pipeline = in_pipeline

    def apply(self, name: str, maps: Sequence[IndexMap], morphisms: Iterable[str] = ()) -> Rewrite:
        """Applies index maps as one numbered rewrite.

        Args:
            name: The pass that asks for it.
            maps: At most one index map for each space; indices refer to the graph as it is.
            morphisms: The morphisms as text, for the record.

        Raises:
            RewriteError: if the program cannot follow; nothing was changed.
        """
        if self._in_pipeline:
            return self._observed(name, tuple(maps), tuple(morphisms))
        with all_or_nothing(self.graph, self.optimizer):
            return self._observed(name, tuple(maps), tuple(morphisms))

    def _observed(self, name: str, maps: tuple[IndexMap, ...], morphisms: tuple[str, ...]) -> Rewrite:
        """Tells the instruments before and after."""
        watching = active()
        pending = PendingRewrite(len(self.graph.history) + 1, name, self.graph, maps, morphisms)
        for instrument in watching:
            instrument.before_rewrite(pending)
        start = time.perf_counter()
        snapshot = Snapshot.take(self.graph, self.optimizer)
        try:
            rewrite = self._apply(pending)
        except BaseException:
            snapshot.restore()
            raise
        seconds = time.perf_counter() - start
        tell_all(lambda instrument: instrument.after_rewrite(self.graph, rewrite, seconds), watching)
        return rewrite

    def replace_program(self, program: fx.Graph) -> None:
        """Puts another program in the place of the graph's; the old one is kept whole, for a snapshot."""
        self.graph.graph = program

    def _apply(self, pending: PendingRewrite) -> Rewrite:
        before, maps = self.graph.channels, pending.maps
        count = _count_parameters(self.graph)
        rewritten = rewrite_program(self.graph, maps)
        self._try_wrapped_functions(maps)
        self._replace_tensors(rewritten.axes, maps, before)
        self.graph.attach(rewritten.layer)
        delta = _count_parameters(self.graph) - count
        rewrite = Rewrite(pending.number, pending.name, pending.morphisms, maps, delta)
        self.graph.record(rewrite)
        self.graph.recompile()
        return rewrite

    def _try_wrapped_functions(self, maps: Sequence[IndexMap]) -> None:
        node = changed_by(self.graph, copies_of(maps))
        if node is not None:
            raise RewriteError(
                unlike(node),
                node=node.name,
                source=source_of(node),
                hint=suggestion_for("opaque-module"),
                code="does-not-follow",
            )

    @torch.no_grad()
    def _replace_tensors(
        self, axes: Mapping[str, Sequence[AxisMap]], maps: Sequence[IndexMap], before: ChannelLayer
    ) -> None:
        owners, state = _owners(self.graph), named_state(self.graph)
        uses = perturbed(maps, before)
        new_of: dict[nn.Parameter, nn.Parameter] = {}
        state_of: dict[nn.Parameter, Mapping[str, Any]] = {}
        replaced: list[tuple[torch.Tensor, torch.Tensor]] = []
        for key, axis_list in axes.items():
            old = state[key]
            new = rewrite_tensor(old, axis_list, full_theta(old, uses.get(key, ()), before))
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
                new.grad = None if old.grad is None else rewrite_gradient(old.grad, axis_list, 1)
                new_of[old] = new
                if self.optimizer is not None:
                    state_of[old] = _new_state(self.optimizer, old, axis_list)
            replaced.append((old, new))
        for old, new in replaced:
            for module, attribute in owners[id(old)]:
                setattr(module, attribute, new)
        if self.optimizer is not None:
            replace_parameters(self.optimizer, new_of, state_of)


def _new_state(
    optimizer: optim.Optimizer, parameter: nn.Parameter, axes: Sequence[AxisMap]
) -> Mapping[str, Any]:
    state: dict[str, Any] = dict(optimizer.state.get(parameter, {}))
    for name, power in powers_of(optimizer, parameter).items():
        state[name] = rewrite_gradient(state[name], axes, power)
    return state


def _owners(graph: Graph) -> dict[int, list[tuple[nn.Module, str]]]:
    """Returns every place that a tensor is registered at; shared parameters have several."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in graph.modules():
        for name, tensor in own_state(module).items():
            found.setdefault(id(tensor), []).append((module, name))
    return found


def _count_parameters(graph: Graph) -> int:
    return sum(parameter.numel() for parameter in graph.parameters())
