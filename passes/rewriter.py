"""The one place that mutates a graph: applies index maps to tensors, literals, gradients and moments.

The order is what makes a rewrite all-or-nothing and proven: literals and module attributes first, then a
labelled run of the program on the *predicted* shapes, which must find the predicted widths, shapes and
bindings, and only then the tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn, optim

from morphir.analysis.literals import rewrite_literals
from morphir.analysis.module_literals import module_attributes, rewrite_modules
from morphir.analysis.spaces import analyse
from morphir.errors import AnalysisError, MorphirError, RewriteError, VerificationError
from morphir.ir.channels import ChannelLayer
from morphir.ir.codes import suggestion_for
from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap, Rewrite
from morphir.ir.source import source_of
from morphir.ir.state import own_state
from morphir.morphisms.plan import copies_of
from passes.axis_map import AxisMap, axis_maps
from passes.moments import powers_of, replace_parameters
from passes.snapshot import Snapshot
from passes.tensors import full_theta, rewrite_gradient, rewrite_tensor

DOES_NOT_FOLLOW = "does-not-follow"


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
        """Applies index maps as one numbered rewrite.

        Args:
            name: The pass that asks for it.
            maps: At most one index map for each space; indices refer to the graph as it is.
            morphisms: The morphisms as text, for the record.

        Raises:
            RewriteError: if the program cannot follow; nothing was changed.
        """
        snapshot = Snapshot.take(self.graph, self.optimizer)
        try:
            return self._apply(name, maps, tuple(morphisms))
        except AnalysisError as error:
            snapshot.restore()
            raise _does_not_follow(name, error.__cause__ or error, error) from error
        except MorphirError:
            snapshot.restore()
            raise
        except Exception as error:
            snapshot.restore()
            raise _does_not_follow(name, error) from error

    def replace_program(self, program: fx.Graph) -> None:
        """Puts another program in the place of the graph's; the old one is kept whole, for a snapshot."""
        self.graph.graph = program

    def _apply(self, name: str, maps: Sequence[IndexMap], morphisms: tuple[str, ...]) -> Rewrite:
        before = self.graph.channels
        count = _count_parameters(self.graph)
        copies = copies_of(maps)
        shapes = _new_shapes(self.graph, before, copies)
        rewrite_literals(self.graph.graph, before, copies)
        rewrite_modules(self.graph, self.graph.graph, before, copies)
        _set_module_attributes(self.graph, shapes)
        after = analyse(self.graph, shapes)
        _check_values(self.graph, before, after, copies)
        _check_widths(before, after, maps)
        self._replace_tensors(_by_parameter(axis_maps(before, after, maps)), maps, before)
        self.graph.attach(after)
        self.graph.recompile()
        delta = _count_parameters(self.graph) - count
        rewrite = Rewrite(len(self.graph.history) + 1, name, morphisms, tuple(maps), delta)
        self.graph.record(rewrite)
        return rewrite

    @torch.no_grad()
    def _replace_tensors(
        self, axes: Mapping[str, list[AxisMap]], maps: Sequence[IndexMap], before: ChannelLayer
    ) -> None:
        owners = _owners(self.graph)
        new_of: dict[nn.Parameter, nn.Parameter] = {}
        state_of: dict[nn.Parameter, Mapping[str, Any]] = {}
        replaced: list[tuple[torch.Tensor, torch.Tensor]] = []
        for key, axis_list in axes.items():
            old = _tensor(self.graph, key)
            new = rewrite_tensor(old, axis_list, full_theta(key, old, maps, before))
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


def _does_not_follow(rewrite: str, cause: BaseException, at: AnalysisError | None = None) -> RewriteError:
    return RewriteError(
        f"the program does not follow the rewrite {rewrite}: {cause}",
        node=at and at.node,
        source=at and at.source,
        hint=suggestion_for(DOES_NOT_FOLLOW),
        code=DOES_NOT_FOLLOW,
    )


def _new_state(
    optimizer: optim.Optimizer, parameter: nn.Parameter, axes: Sequence[AxisMap]
) -> Mapping[str, Any]:
    state: dict[str, Any] = dict(optimizer.state.get(parameter, {}))
    for name, power in powers_of(optimizer, parameter).items():
        state[name] = rewrite_gradient(state[name], axes, power)
    return state


def _tensor(graph: Graph, key: str) -> torch.Tensor:
    path, _, name = key.rpartition(".")
    return getattr(graph.get_submodule(path), name)


def _owners(graph: Graph) -> dict[int, list[tuple[nn.Module, str]]]:
    """Returns every place that a tensor is registered at; shared parameters have several."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in graph.modules():
        for name, tensor in own_state(module).items():
            found.setdefault(id(tensor), []).append((module, name))
    return found


def _count_parameters(graph: Graph) -> int:
    return sum(parameter.numel() for parameter in graph.parameters())


def _by_parameter(maps: Iterable[AxisMap]) -> dict[str, list[AxisMap]]:
    """Gathers the maps by parameter; the producer's rows come last, when theta's other axes are rewritten."""
    found: dict[str, list[AxisMap]] = {}
    for axis_map in maps:
        found.setdefault(axis_map.parameter, []).append(axis_map)
    return {
        key: sorted(items, key=lambda axis_map: bool(axis_map.signs.any())) for key, items in found.items()
    }


def _new_shapes(
    graph: Graph, layer: ChannelLayer, copies: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    extents: dict[str, list[int]] = {}
    for space in layer.spaces.values():
        for binding in space.bindings:
            if space.name in copies:
                shape = extents.setdefault(binding.parameter, list(_tensor(graph, binding.parameter).shape))
                shape[binding.axis] += sum(copies[space.name][g] - 1 for g in binding.groups if g >= 0)
    return {key: tuple(shape) for key, shape in extents.items()}


def _set_module_attributes(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
    # By identity: a shared parameter shapes every module that holds it, whatever its first name is.
    shape_of = {id(_tensor(graph, key)): shape for key, shape in shapes.items()}
    for module in graph.modules():
        held = own_state(module)
        if any(id(tensor) in shape_of for tensor in held.values()):
            own = {name: shape_of.get(id(tensor), tuple(tensor.shape)) for name, tensor in held.items()}
            for attribute, value in module_attributes(module, own).items():
                setattr(module, attribute, value)


def _check_widths(before: ChannelLayer, after: ChannelLayer, maps: Sequence[IndexMap]) -> None:
    expected = {name: space.width for name, space in before.spaces.items()}
    expected.update({m.space: m.new_width for m in maps})
    found = {name: space.width for name, space in after.spaces.items()}
    if expected != found:
        wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        detail = ", ".join(
            f"{name}: {expected.get(name)} predicted, {found.get(name)} found" for name in wrong
        )
        raise VerificationError(
            f"the rewritten program has other channel spaces than predicted ({detail})",
            hint=suggestion_for(DOES_NOT_FOLLOW),
            code=DOES_NOT_FOLLOW,
        )


def _check_values(
    graph: Graph, before: ChannelLayer, after: ChannelLayer, copies: Mapping[str, Sequence[int]]
) -> None:
    for node in graph.graph.nodes:
        if node.op == "get_attr":  # parameters follow their axis maps; an index has an entry for each channel
            continue
        expected = [value.extents(copies) for value in before.values[node.name]]
        found = [value.shape for value in after.values[node.name]]
        if expected != found:
            raise VerificationError(
                f"the rewritten program yields shape {found}, predicted was {expected}",
                node=node.name,
                source=source_of(node),
                hint=suggestion_for(DOES_NOT_FOLLOW),
                code=DOES_NOT_FOLLOW,
            )
