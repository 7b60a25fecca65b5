"""From coupling components to channel spaces: the ordered groups that the same producers make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx

from morphir.analysis.coupling import Coupling, couple
from morphir.analysis.execution import Execution, execute
from morphir.analysis.labels import LabelledValue
from morphir.analysis.rules import MixingUse
from morphir.ir.channels import (
    AxisBinding,
    ChannelLayer,
    ChannelSpace,
    Consumer,
    Producer,
    Product,
    Role,
    Value,
    ValueLayout,
    Verdict,
)
from morphir.ir.graph import Graph
from morphir.ir.source import source_of
from morphir.ir.trace import ExampleArgument, trace_program


def trace(model: object, example_inputs: ExampleArgument) -> Graph:
    """Traces a model and finds its channel spaces.

    Args:
        model: Any ``nn.Module`` that ``torch.fx`` can trace. It is copied, never changed.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments, with a
            batch dimension.

    Returns:
        The graph, in the model's own mode (training or evaluation).

    Raises:
        TraceError: if the model cannot be traced or fails on the example inputs; names the user's line.
    """
    graph = trace_program(model, example_inputs)  # pyright: ignore[reportArgumentType]
    graph.attach(analyse(graph))
    return graph


def analyse(graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None) -> ChannelLayer:
    """Finds every channel space of a graph by one labelled run.

    Args:
        graph: The program; left as it was.
        shapes: New shapes of parameters and buffers, to analyse the program as if it had them.
    """
    execution = execute(graph, shapes)
    return _Builder(graph, execution, couple(execution)).build()


@dataclass(frozen=True)
class _Member:
    """Which group of which space a component is."""

    space: str
    index: int


class _Builder:
    """Names the spaces and resolves every binding to group indices."""

    def __init__(self, graph: Graph, execution: Execution, coupling: Coupling) -> None:
        self.graph = graph
        self.nodes: dict[str, fx.Node] = {node.name: node for node in graph.graph.nodes}
        self.activations = _activations(graph.graph)
        self.execution = execution
        self.coupling = coupling
        self.uses = list(dict.fromkeys(execution.mixing))
        self.members: dict[int, _Member] = {}
        self.rows_of: dict[str, list[MixingUse]] = {}

    def build(self) -> ChannelLayer:
        roots_of = self._name_spaces()
        bindings = self._bindings()
        values = {name: tuple(map(self._value, items)) for name, items in self.execution.values.items()}
        spaces = {
            name: ChannelSpace(
                name,
                self._verdicts(name, roots, bindings[name]),
                tuple(map(self._producer, self.rows_of[name])),
                tuple(self._consumers(name, values)),
                tuple(bindings[name]),
            )
            for name, roots in roots_of.items()
        }
        products = tuple(Product(node, self._value(space)) for node, space in self.execution.products)
        return ChannelLayer(spaces, values, products)

    def _axis(self, parameter: str, axis: int) -> NDArray[np.int64]:
        return self.coupling.axis(self.execution, parameter, axis)

    def _name_spaces(self) -> dict[str, list[int]]:
        """Gathers components by their producers, and names each set after the first of these."""
        makers: dict[int, dict[MixingUse, int]] = {}
        for use in self.uses:
            for root in self._axis(use.parameter, use.out_axis).tolist():
                counts = makers.setdefault(root, {})
                counts[use] = counts.get(use, 0) + 1
        by_makers: dict[tuple[tuple[MixingUse, int], ...], list[int]] = {}
        for root, counts in makers.items():
            by_makers.setdefault(tuple(counts.items()), []).append(root)
        named: dict[str, list[int]] = {}
        for counts, roots in by_makers.items():
            name = _unused_name(counts[0][0].parameter, named)
            named[name] = roots
            self.rows_of[name] = [use for use, _ in counts]
            self.members.update({root: _Member(name, index) for index, root in enumerate(roots)})
        return named

    def _groups(self, space: str, roots: Iterable[int]) -> tuple[int, ...]:
        found = (self.members.get(root) for root in roots)
        return tuple(m.index if m is not None and m.space == space else -1 for m in found)

    def _spaces_in(self, roots: NDArray[np.int64]) -> list[str]:
        members = (self.members.get(root) for root in np.unique(roots).tolist())
        return list(dict.fromkeys(m.space for m in members if m is not None))

    def _bindings(self) -> dict[str, list[AxisBinding]]:
        roles = _roles(self.uses)
        bindings: dict[str, list[AxisBinding]] = {name: [] for name in self.rows_of}
        for parameter, axis in self.execution.axes.first:
            if parameter.startswith("input:"):
                continue
            roots = self._axis(parameter, axis)
            for name in self._spaces_in(roots):
                role = roles.get((parameter, axis), "region")
                bindings[name].append(AxisBinding(parameter, axis, role, self._groups(name, roots.tolist())))
        return bindings

    def _value(self, value: LabelledValue) -> Value:
        layouts: list[ValueLayout] = []
        for layer in value.layers:
            found = self.coupling.vector(layer)
            if found is not None:
                dim, roots = found
                layouts += [
                    ValueLayout(name, dim, self._groups(name, roots.tolist()))
                    for name in self._spaces_in(roots)
                ]
        return Value(value.shape, value.dtype, tuple(layouts))

    def _producer(self, use: MixingUse) -> Producer:
        return Producer(use.node, use.parameter, use.out_axis, use.in_axis, source_of(self.nodes[use.node]))

    def _consumers(self, space: str, values: Mapping[str, Sequence[Value]]) -> Iterable[Consumer]:
        for use in self.uses:
            if space not in self._spaces_in(self._axis(use.parameter, use.in_axis)):
                continue
            node = self.nodes[use.node]
            for source in node.all_input_nodes:
                if source not in self.activations or len(values[source.name]) != 1:
                    continue
                for layout in values[source.name][0].layouts:
                    if layout.space == space:
                        yield Consumer(
                            use.node,
                            source.name,
                            use.parameter,
                            use.in_axis,
                            use.out_axis,
                            layout.dim,
                            layout.groups,
                            source_of(node),
                        )

    def _verdicts(
        self, space: str, roots: Sequence[int], bindings: Sequence[AxisBinding]
    ) -> tuple[Verdict, ...]:
        """A restriction on the component, or a wiring that the rewriter or the learner cannot follow."""
        wiring = self._wiring_verdict(space, bindings)
        return tuple(self._restricted(root) or wiring or Verdict("exact") for root in roots)

    def _restricted(self, root: int) -> Verdict | None:
        restriction = self.coupling.restrictions.get(root)
        if restriction is None:
            return None
        source = source_of(self.nodes[restriction.node])
        return Verdict(restriction.kind, restriction.code, restriction.reason, restriction.node, source)

    def _wiring_verdict(self, space: str, bindings: Sequence[AxisBinding]) -> Verdict | None:
        outs = {(use.parameter, use.out_axis) for use in self.uses}
        ins = {(use.parameter, use.in_axis) for use in self.uses}
        for binding in bindings:
            if (binding.parameter, binding.axis) in outs & ins:
                reason = f"{binding.parameter} makes channels in one place and reads them in another"
                return self._frozen("tied-parameter", reason, self.rows_of[space][0].node)
        for use in self.uses:
            sharing = [
                other for other in self.uses if other.node == use.node and other.parameter != use.parameter
            ]
            if sharing and any(b.parameter in {use.parameter, sharing[0].parameter} for b in bindings):
                return self._frozen(
                    "opaque-module", "a module that mixes channels several times inside", use.node
                )
        return None

    def _frozen(self, code: str, reason: str, node: str) -> Verdict:
        return Verdict("frozen", code, reason, node, source_of(self.nodes[node]))


def _activations(program: fx.Graph) -> set[fx.Node]:
    """Returns the nodes that depend on the model's inputs; the others are computed from parameters."""
    found: set[fx.Node] = set()
    for node in program.nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _unused_name(parameter: str, used: Mapping[str, object]) -> str:
    """Names a space after its first producer's module or parameter; numbered where it makes several."""
    base = parameter.removesuffix(".weight")
    if base not in used:
        return base
    return next(name for n in range(2, len(used) + 2) if (name := f"{base}#{n}") not in used)


def _roles(uses: Sequence[MixingUse]) -> dict[tuple[str, int], Role]:
    roles: dict[tuple[str, int], Role] = {(use.parameter, use.in_axis): "consumer" for use in uses}
    roles.update({(use.parameter, use.out_axis): "producer" for use in uses})
    return roles
