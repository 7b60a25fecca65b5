"""From coupling components to channel spaces: the ordered groups that the same producers make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import fx

from morphir.analysis.coupling import Coupling, couple
from morphir.analysis.execution import Execution, execute, is_fixed_key
from morphir.analysis.labels import LabelledValue, Layer
from morphir.analysis.operands import parameter_nodes
from morphir.analysis.rules import MixingUse
from morphir.ir.channels import (
    AxisBinding,
    ChannelLayer,
    ChannelSpace,
    Consumer,
    Producer,
    Product,
    Role,
    Several,
    Value,
    ValueLayout,
    Verdict,
)
from morphir.ir.graph import Graph
from morphir.ir.groups import Groups
from morphir.ir.source import source_of


def analyse(graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None) -> ChannelLayer:
    """Finds every channel space of a graph by one labelled run.

    Args:
        graph: The program; left as it was.
        shapes: New shapes of parameters and buffers, to analyse the program as if it had them.
    """
    return label(graph, shapes).layer()


def label(graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Labelling:
    """Makes the labelled run alone: what it finds does not hang on the graph's limits."""
    execution = execute(graph, shapes)
    return Labelling(graph, execution, couple(execution))


@dataclass(frozen=True)
class Labelling:
    """The labels of one program and their coupling.

    Attributes:
        graph: The program.
        execution: The labelled run.
        coupling: Which labels go together.
    """

    graph: Graph
    execution: Execution
    coupling: Coupling

    def layer(self) -> ChannelLayer:
        """Returns the channel spaces, under the graph's limits as they are now."""
        return _Builder(self.graph, self.execution, self.coupling).build()


@dataclass(frozen=True)
class _Members:
    """Which group of which space every component is.

    Attributes:
        names: Names of the spaces, in program order.
        space_of: Root to its space's position among ``names``, or -1.
        index_of: Root to its group's index in the space.
    """

    names: tuple[str, ...]
    space_of: NDArray[np.int64]
    index_of: NDArray[np.int64]

    @staticmethod
    def of(total: int, named: Mapping[str, Sequence[int]]) -> _Members:
        """Numbers the groups of every space; ``total`` labels in all."""
        space_of, index_of = np.full(total, -1), np.full(total, -1)
        for position, roots in enumerate(named.values()):
            space_of[roots] = position
            index_of[roots] = np.arange(len(roots))
        return _Members(tuple(named), space_of, index_of)

    def groups(self, roots: NDArray[np.int64]) -> Mapping[str, Groups]:
        """Returns, for each space among ``roots``, the group at every position, or -1."""
        # A root of -1 is no label; the last entry that it reads is masked.
        owners = np.where(roots < 0, -1, self.space_of[roots])
        at = np.argsort(owners, kind="stable")
        ordered, held = owners[at], self.index_of[roots[at]]
        bounds = [*np.flatnonzero(ordered != np.append(-1, ordered[:-1])).tolist(), len(roots)]
        return {
            self.names[ordered[start]]: Groups(len(roots), at[start:end], held[start:end])
            for start, end in pairwise(bounds)
        }


class _Builder:
    """Names the spaces and resolves every binding to group indices."""

    def __init__(self, graph: Graph, execution: Execution, coupling: Coupling) -> None:
        self.nodes: dict[str, fx.Node] = {node.name: node for node in graph.graph.nodes}
        self.limits = graph.limits
        self.execution = execution
        self.coupling = coupling
        self.uses = list(dict.fromkeys(execution.mixing))
        self.parameters = parameter_nodes(graph.graph, {use.node for use in self.uses})
        self.rows_of: dict[str, list[MixingUse]] = {}
        self.roots_of = self._name_spaces()
        self.members = _Members.of(execution.axes.total, self.roots_of)
        self.groups: dict[bytes, Mapping[str, Groups]] = {}
        self.layouts: dict[tuple[int, bytes], tuple[ValueLayout, ...]] = {}
        self.restricted: dict[int, Verdict] = {}

    def build(self) -> ChannelLayer:
        bindings = self._bindings()
        values = {name: tuple(map(self._value, items)) for name, items in self.execution.values.items()}
        consumers = self._consumers(values)
        frozen = {**self.limits.verdicts, **self._wiring_verdicts(bindings)}
        spaces = {
            name: ChannelSpace(
                name,
                tuple(self._verdict(root, frozen.get(name)) for root in roots),
                tuple(map(self._producer, self.rows_of[name])),
                tuple(consumers[name]),
                tuple(bindings[name]),
                least=min(self.limits.least.get(name, 1), len(roots)),
            )
            for name, roots in self.roots_of.items()
        }
        several = tuple(self._several(node, roots) for node, roots in self.coupling.plural if roots.size > 1)
        products = tuple(Product(node, self._value(space)) for node, space in self.execution.products)
        return ChannelLayer(spaces, values, products, several)

    def _several(self, node: str, roots: NDArray[np.int64]) -> Several:
        return Several(node, self._groups(roots), int((self.members.space_of[roots] < 0).sum()))

    def _axis(self, parameter: str, axis: int) -> NDArray[np.int64]:
        return self.coupling.axis(self.execution, parameter, axis)

    def _groups(self, roots: NDArray[np.int64]) -> Mapping[str, Groups]:
        """Many axes hold the same channels, as all vectors of a batch norm and the columns behind it."""
        key = roots.tobytes()
        if key not in self.groups:
            self.groups[key] = self.members.groups(roots)
        return self.groups[key]

    def _name_spaces(self) -> dict[str, list[int]]:
        """Gathers components by their producers, and names each set after the first of these."""
        kinds = np.zeros(self.execution.axes.total, np.int64)
        makers: list[tuple[MixingUse, ...]] = [()]
        made: list[NDArray[np.int64]] = []
        for use in self.uses:
            roots, first, counts = np.unique(
                self._axis(use.parameter, use.out_axis), return_index=True, return_counts=True
            )
            if not roots.size:
                continue
            new = kinds[roots] == 0
            made.append(roots[new][np.argsort(first[new])])
            # Components that were of one kind stay so where this use makes as many channels of each.
            _, at, place = np.unique(
                kinds[roots] * (counts.max() + 1) + counts, return_index=True, return_inverse=True
            )
            before = kinds[roots[at]].tolist()
            kinds[roots] = len(makers) + place
            makers += [(*makers[kind], use) for kind in before]
        ordered = np.concatenate([*made, np.empty(0, np.int64)])
        by_kind: dict[int, list[int]] = {}
        for kind, root in zip(kinds[ordered].tolist(), ordered.tolist(), strict=True):
            by_kind.setdefault(kind, []).append(root)
        named: dict[str, list[int]] = {}
        for kind, roots in by_kind.items():
            name = _unused_name(makers[kind][0].parameter, named)
            named[name] = roots
            self.rows_of[name] = list(makers[kind])
        return named

    def _bindings(self) -> dict[str, list[AxisBinding]]:
        roles = _roles(self.uses)
        bindings: dict[str, list[AxisBinding]] = {name: [] for name in self.roots_of}
        for parameter, axis in self.execution.axes.first:
            if is_fixed_key(parameter):
                continue
            role = roles.get((parameter, axis), "region")
            for name, groups in self._groups(self._axis(parameter, axis)).items():
                bindings[name].append(AxisBinding(parameter, axis, role, groups))
        return bindings

    def _value(self, value: LabelledValue) -> Value:
        layouts = [layout for layer in value.layers for layout in self._layouts(layer)]
        return Value(value.shape, value.dtype, tuple(layouts))

    def _layouts(self, layer: Layer) -> tuple[ValueLayout, ...]:
        """A tensor's channels pass many operators unchanged, and are resolved once."""
        found = self.coupling.vector(layer)
        if found is None:
            return ()
        dim, roots = found
        key = (dim, roots.tobytes())
        if key not in self.layouts:
            self.layouts[key] = tuple(
                ValueLayout(name, dim, groups) for name, groups in self._groups(roots).items()
            )
        return self.layouts[key]

    def _producer(self, use: MixingUse) -> Producer:
        return Producer(use.node, use.parameter, use.out_axis, use.in_axis, source_of(self.nodes[use.node]))

    def _consumers(self, values: Mapping[str, Sequence[Value]]) -> dict[str, list[Consumer]]:
        """Returns every space's edges: a kernel whose columns are its groups, on a tensor that holds them."""
        consumers: dict[str, list[Consumer]] = {name: [] for name in self.roots_of}
        for use in self.uses:
            read = self._groups(self._axis(use.parameter, use.in_axis))
            for tensor, layout in self._sources(use.node, values):
                if layout.space in read:
                    consumers[layout.space].append(self._consumer(use, tensor, layout))
        return consumers

    def _sources(self, node: str, values: Mapping[str, Sequence[Value]]) -> Iterator[tuple[str, ValueLayout]]:
        for source in self.nodes[node].all_input_nodes:
            if source not in self.parameters and len(values[source.name]) == 1:
                for layout in values[source.name][0].layouts:
                    yield source.name, layout

    def _consumer(self, use: MixingUse, tensor: str, layout: ValueLayout) -> Consumer:
        source = source_of(self.nodes[use.node])
        axes = (use.in_axis, use.out_axis)
        return Consumer(use.node, tensor, use.parameter, *axes, layout.dim, layout.groups, source)

    def _verdict(self, root: int, of_space: Verdict | None) -> Verdict:
        own = self._restricted(root)
        if own is not None and (own.kind == "frozen" or of_space is None):
            return own
        return of_space or _EXACT

    def _restricted(self, root: int) -> Verdict | None:
        """Returns the verdict of a restriction on the component, if there is one."""
        restriction = self.coupling.restrictions.get(root)
        if restriction is None:
            return None
        key = id(restriction)
        if key not in self.restricted:
            source = source_of(self.nodes[restriction.node])
            self.restricted[key] = Verdict(
                restriction.kind, restriction.code, restriction.reason, restriction.node, source
            )
        return self.restricted[key]

    def _wiring_verdicts(self, bindings: Mapping[str, Sequence[AxisBinding]]) -> dict[str, Verdict]:
        """Freezes the spaces whose wiring the rewriter or the learner cannot follow."""
        both = {(use.parameter, use.out_axis) for use in self.uses} & {
            (use.parameter, use.in_axis) for use in self.uses
        }
        inside = self._mixed_inside()
        verdicts: dict[str, Verdict] = {}
        for name, bound in bindings.items():
            tied = next((b.parameter for b in bound if (b.parameter, b.axis) in both), None)
            opaque = next((inside[b.parameter] for b in bound if b.parameter in inside), None)
            if tied is not None:
                reason = f"{tied} makes channels in one place and reads them in another"
                verdicts[name] = self._frozen("tied-parameter", reason, self.rows_of[name][0].node)
            elif opaque is not None:
                reason = "a module that mixes channels several times inside"
                verdicts[name] = self._frozen("opaque-module", reason, opaque)
        return verdicts

    def _mixed_inside(self) -> dict[str, str]:
        """Returns the kernels of nodes that use several of them, with the node."""
        kernels: dict[str, set[str]] = {}
        for use in self.uses:
            kernels.setdefault(use.node, set()).add(use.parameter)
        found: dict[str, str] = {}
        for node, parameters in kernels.items():
            for parameter in parameters if len(parameters) > 1 else ():
                found.setdefault(parameter, node)
        return found

    def _frozen(self, code: str, reason: str, node: str) -> Verdict:
        return Verdict("frozen", code, reason, node, source_of(self.nodes[node]))


_EXACT = Verdict("exact")


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
