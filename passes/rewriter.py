"""The one place that mutates a graph: applies index maps to tensors, literals, gradients and moments.

The order is what makes a rewrite all-or-nothing and proven: first ``rewrite_program``, which rewrites what is
no tensor and proves that the program follows; only then the tensors. New values are new tensors, so that
references to the old ones are enough to put everything back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from morphir.ir.state import attribute, own_state
from passes.instruments import PendingRewrite, active, tell_all
from passes.moments import powers_of, replace_parameters
from passes.snapshot import Snapshot
from passes.tensors import full_theta, perturbed, rewrite_gradient, rewrite_tensor


@dataclass(frozen=True)
class NewTensor:
    """What a parameter or buffer becomes.

    Attributes:
        values: Its new values.
        gradient: The new gradient; None for none.
        moments: Entries of the optimizer's state of it that change; the others go along as they are.
    """

    values: torch.Tensor
    gradient: torch.Tensor | None = None
    moments: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


class Rewriter:
    """Applies index maps to one graph, and to the optimizer that trains it.

    Args:
        graph: The graph to change in place.
        optimizer: The optimizer that holds the graph's parameters, if any.
    """

    def __init__(self, graph: Graph, optimizer: optim.Optimizer | None = None) -> None:
        self.graph = graph
        self.optimizer = optimizer

    def apply(self, name: str, maps: Sequence[IndexMap], morphisms: Iterable[str] = ()) -> Rewrite:
        """Applies index maps as one numbered rewrite; tells the instruments before and after.

        What an instrument raises afterwards, :func:`all_or_nothing` around it puts back.

        Args:
            name: The pass that asks for it.
            maps: At most one index map for each space; indices refer to the graph as it is.
            morphisms: The morphisms as text, for the record.

        Raises:
            RewriteError: if the program cannot follow; nothing was changed.
        """
        watching, number = active(), len(self.graph.history) + 1
        pending = PendingRewrite(number, name, self.graph, tuple(maps), tuple(morphisms))
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

    @torch.no_grad()
    def replace_tensors(self, new: Mapping[str, NewTensor]) -> None:
        """Puts new tensors in the places of old ones, which are left as they are.

        A parameter stays one, and requires a gradient where it did. Wherever the graph holds the old tensor
        it holds the new one afterwards, and so does the optimizer.

        Args:
            new: ``state_dict`` key to what the tensor becomes.
        """
        owners = _owners(self.graph)
        moved: dict[nn.Parameter, nn.Parameter] = {}
        state_of: dict[nn.Parameter, Mapping[str, Any]] = {}
        for key, item in new.items():
            old: torch.Tensor = attribute(self.graph, key)
            tensor = item.values
            if isinstance(old, nn.Parameter):
                tensor = moved[old] = nn.Parameter(tensor, requires_grad=old.requires_grad)
                tensor.grad = item.gradient
                if self.optimizer is not None:
                    state_of[old] = {**self.optimizer.state.get(old, {}), **item.moments}
            for module, name in owners[id(old)]:
                setattr(module, name, tensor)
        if self.optimizer is not None:
            replace_parameters(self.optimizer, moved, state_of)

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
        uses, new = perturbed(maps, before), dict[str, NewTensor]()
        for key, axis_list in axes.items():
            old: torch.Tensor = attribute(self.graph, key)
            values = rewrite_tensor(old, axis_list, full_theta(old, uses.get(key, ()), before))
            gradient = None if old.grad is None else rewrite_gradient(old.grad, axis_list, 1)
            new[key] = NewTensor(values, gradient, _new_moments(self.optimizer, old, axis_list))
        self.replace_tensors(new)


def _new_moments(
    optimizer: optim.Optimizer | None, old: torch.Tensor, axes: Sequence[AxisMap]
) -> dict[str, torch.Tensor]:
    if optimizer is None or not isinstance(old, nn.Parameter):
        return {}
    state = optimizer.state.get(old, {})
    return {
        name: rewrite_gradient(state[name], axes, power) for name, power in powers_of(optimizer, old).items()
    }


def _owners(graph: Graph) -> dict[int, list[tuple[nn.Module, str]]]:
    """Returns every place that a tensor is registered at; shared parameters have several."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in graph.modules():
        for name, tensor in own_state(module).items():
            found.setdefault(id(tensor), []).append((module, name))
    return found


def _count_parameters(graph: Graph) -> int:
    return sum(parameter.numel() for parameter in graph.parameters())
