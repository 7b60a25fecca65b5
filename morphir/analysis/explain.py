"""Why a channel group is what it is: the ties that make it one group, and the way to what restricts it.

The labelled run is done again, with every tie kept as an edge between two labels. A group is a connected
component of these; the way from its producers to what restricts it is a shortest path.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from torch import fx

from morphir.analysis.coupling import couple
from morphir.analysis.execution import Execution, execute
from morphir.analysis.explanation import Explanation, GroupExplanation, Site, TieStep
from morphir.analysis.labels import Restriction, Tie
from morphir.ir.channels import ChannelSpace, Producer, Role, Verdict
from morphir.ir.graph import Graph, require_graph
from morphir.ir.source import SourceLocation, source_of
from morphir.ir.state import named_state

Path = Sequence[int]


def explain(graph: Graph, space: str, index: int | None = None) -> Explanation:
    """Explains, in words and with the user's source lines, what ties and what restricts channel groups.

    For a frozen or prune-only group: the shortest chain of ties from its producers to what restricts it. For
    a group that can be rewritten: its producers and what ties them, and every parameter, buffer and consumer
    that a rewrite touches.

    Args:
        graph: An analysed graph; its program is run once more on fake tensors.
        space: Name of one of its spaces.
        index: One of the space's groups; all of them, like ones together, where None.

    Raises:
        MorphirError: if there is no such space or group.
    """
    require_graph(graph)
    found = graph.space(space)
    if index is not None:
        found.verdict(index)
    groups = range(found.width) if index is None else [operator.index(index)]
    explainer = _Explainer(graph, found)
    return Explanation(space, found.width, _gathered([explainer.group(group) for group in groups]))


def _gathered(explained: Iterable[GroupExplanation]) -> tuple[GroupExplanation, ...]:
    """Puts like groups together; the first one's sites stand for all."""
    alike: dict[tuple[object, ...], list[GroupExplanation]] = {}
    for group in explained:
        alike.setdefault(group.likeness, []).append(group)
    return tuple(
        replace(same[0], groups=tuple(index for group in same for index in group.groups))
        for same in alike.values()
    )


def _merged(steps: Iterable[TieStep]) -> Iterator[TieStep]:
    """Puts ties of the same tensors at the same node together, as of a shuffle's many rows."""
    alike: dict[tuple[object, ...], list[TieStep]] = {}
    for step in steps:
        here, there = step.here, step.there
        key = (here.tensor, here.axis, there.tensor, there.axis, step.code, step.node)
        alike.setdefault(key, []).append(step)
    for same in alike.values():
        here, there = (
            replace(sites[0], entries=tuple(sorted({entry for site in sites for entry in site.entries})))
            for sites in ([step.here for step in same], [step.there for step in same])
        )
        yield replace(same[0], here=here, there=there)


class _Explainer:
    """One labelled run, seen as a graph of labels for the groups of one space."""

    def __init__(self, graph: Graph, space: ChannelSpace) -> None:
        execution = execute(graph)
        coupling = couple(execution)
        self.space = space
        self.sites = _Sites(graph, execution)
        self.roots = coupling.roots
        self.bound = {(b.parameter, b.axis): b.groups.as_array() for b in space.bindings}
        members = [self.roots[self.sites.labels(*axis)][groups >= 0] for axis, groups in self.bound.items()]
        mine = np.isin(self.roots, np.unique(np.concatenate(members)))
        self.ties = _tie_graph(coupling.ties, mine)
        self.restrictions: dict[int, dict[Verdict, list[NDArray[np.int64]]]] = {}
        for restriction in execution.facts.restrictions:
            self._note(restriction, mine)

    def _note(self, restriction: Restriction, mine: NDArray[np.bool_]) -> None:
        """Files a restriction's labels under their components, by what the verdict would be."""
        source = self.sites.source(restriction.node)
        verdict = Verdict(restriction.kind, restriction.code, restriction.reason, restriction.node, source)
        labels = restriction.labels[mine[restriction.labels]]
        for root in np.unique(self.roots[labels]).tolist():
            own = labels[self.roots[labels] == root]
            self.restrictions.setdefault(root, {}).setdefault(verdict, []).append(own)

    def group(self, index: int) -> GroupExplanation:
        """Explains one group."""
        verdict, rows = (
            self.space.verdict(index),
            [self._rows(producer, index) for producer in self.space.producers],
        )
        restricted = self.restrictions.get(int(self.roots[rows[0][0]]), {})
        path = self._way(rows[0], restricted.get(verdict, []))
        from_first = cast("Mapping[int, Path]", nx.single_source_shortest_path(self.ties, rows[0][0]))
        return GroupExplanation(
            space=self.space.name,
            groups=(index,),
            verdict=verdict,
            start=self.sites.of(path[0]),
            path=tuple(self._steps([path])),
            others=tuple(other for other in restricted if other != verdict),
            ties=tuple(_merged(self._steps([from_first[row] for own in rows for row in own]))),
            touches=tuple(self._touches(index)),
            consumers=tuple(self._consumers(index)),
        )

    def _rows(self, producer: Producer, index: int) -> list[int]:
        """Returns the labels of a group's rows in one producer."""
        axis = (producer.parameter, producer.out_axis)
        return self.sites.labels(*axis)[self.bound[axis] == index].tolist()

    def _way(self, rows: Sequence[int], restricted: Sequence[NDArray[np.int64]]) -> Path:
        """Returns the shortest path from one of ``rows`` to a restricted label; a row where none is."""
        if not restricted:
            return rows[:1]
        paths = cast("Mapping[int, Path]", nx.multi_source_dijkstra_path(self.ties, set(rows)))
        return min((paths[label] for label in np.concatenate(restricted).tolist()), key=len)

    def _steps(self, paths: Iterable[Path]) -> Iterator[TieStep]:
        """Yields each tie of some paths once."""
        pairs = ((here, there) for path in paths for here, there in pairwise(path))
        for here, there in dict.fromkeys(pairs):
            tie = cast("Tie", self.ties.edges[here, there]["tie"])
            source = self.sites.source(tie.node)
            yield TieStep(self.sites.of(here), self.sites.of(there), tie.code, tie.node, source)

    def _touches(self, index: int) -> Iterator[Site]:
        for binding in self.space.bindings:
            site = self._entries(binding.parameter, binding.axis, index)
            if site.entries:
                yield site

    def _consumers(self, index: int) -> Iterator[Site]:
        edges = {(c.node, c.parameter): c for c in self.space.consumers if index in c.groups}
        for consumer in edges.values():
            site = self._entries(consumer.parameter, consumer.in_axis, index)
            yield replace(site, node=consumer.node, source=consumer.source)

    def _entries(self, parameter: str, axis: int, index: int) -> Site:
        entries = np.flatnonzero(self.bound[parameter, axis] == index).tolist()
        return self.sites.at(parameter, axis, tuple(entries))


class _Sites:
    """Where labels lie in the user's program."""

    def __init__(self, graph: Graph, execution: Execution) -> None:
        self.nodes: dict[str, fx.Node] = {node.name: node for node in graph.graph.nodes}
        self.axes = execution.axes
        self.keys = [key for key, extent in self.axes.extents.items() if extent]
        self.starts = np.asarray([self.axes.first[key] for key in self.keys])
        self.readers = _readers(graph)
        self.roles: dict[tuple[str, int], tuple[Role, str]] = {}
        for use in execution.mixing:
            self.roles.setdefault((use.parameter, use.in_axis), ("consumer", use.node))
            self.roles.setdefault((use.parameter, use.out_axis), ("producer", use.node))

    def source(self, node: str) -> SourceLocation | None:
        """Returns the user's line of a node."""
        return source_of(self.nodes[node])

    def labels(self, key: str, axis: int) -> NDArray[np.int64]:
        """Returns the labels of one axis of one tensor."""
        return self.axes.first[key, axis] + np.arange(self.axes.extents[key, axis])

    def of(self, label: int) -> Site:
        """Returns the one entry that a label stands for."""
        at = int(np.searchsorted(self.starts, label, side="right")) - 1
        return self.at(*self.keys[at], (label - int(self.starts[at]),))

    def at(self, key: str, axis: int, entries: tuple[int, ...]) -> Site:
        """Returns entries of one axis of one tensor."""
        if key.startswith("input:"):
            name = key.split(":")[1]
            return Site(f"%{name}", axis, entries, None, name, self.source(name))
        role, node = self.roles.get((key, axis), ("region", self.readers.get(key)))
        return Site(key, axis, entries, role, node, self.source(node) if node else None)


def _tie_graph(ties: Iterable[Tie], mine: NDArray[np.bool_]) -> nx.Graph[int]:
    """Returns the labels of a space, each tie an edge; the first tie of two labels explains them."""
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(np.flatnonzero(mine).tolist())
    for tie in ties:
        keep = mine[tie.left]
        for left, right in zip(tie.left[keep].tolist(), tie.right[keep].tolist(), strict=True):
            if not graph.has_edge(left, right):
                graph.add_edge(left, right, tie=tie)
    return graph


def _readers(graph: Graph) -> dict[str, str]:
    """Returns, for every parameter and buffer, the first node that reads it."""
    keys = {id(tensor): key for key, tensor in named_state(graph).items()}
    found: dict[str, str] = {}
    for node in graph.graph.nodes:
        for tensor in _read(graph, node):
            if id(tensor) in keys:
                found.setdefault(keys[id(tensor)], node.name)
    return found


def _read(graph: Graph, node: fx.Node) -> list[object]:
    if node.op == "call_module":
        return list(named_state(graph.get_submodule(str(node.target))).values())
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        return [getattr(graph.get_submodule(path), name)]
    return []
