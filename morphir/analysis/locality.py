"""What a rewrite of one channel space touches, in the words of the paper's section 3.1.

    x -> producers -> y -> region (channelwise) -> a -> consumers -> z

The *affected activations* z are all that the rest of the network sees of a change in the space.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import networkx as nx
from torch import fx

from morphir.analysis.operands import parameter_nodes
from morphir.ir.channels import ChannelSpace
from morphir.ir.graph import Graph, require_graph
from morphir.ir.source import source_of


@dataclass(frozen=True)
class Locality:
    """Node names in program order; each list says which values play the part.

    Attributes:
        space: Name of the channel space.
        x: Inputs of its producers.
        y: Outputs of its producers.
        region: Channelwise nodes between y and a, which carry the channels from one to the other.
        a: Inputs of its consumers.
        z: Outputs of its consumers, the affected activations.
        sources: Node name to the user's line, for every node above that has one.
    """

    space: str
    x: tuple[str, ...]
    y: tuple[str, ...]
    region: tuple[str, ...]
    a: tuple[str, ...]
    z: tuple[str, ...]
    sources: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        parts = {"x": self.x, "y": self.y, "region": self.region, "a": self.a, "z": self.z}
        lines = [f"locality of {self.space}"]
        lines += [
            f"  {part:6} {', '.join(map(self._located, names)) or '(none)'}" for part, names in parts.items()
        ]
        return "\n".join(lines)

    def _located(self, name: str) -> str:
        source = dict(self.sources).get(name)
        return f"%{name} ({source})" if source else f"%{name}"


def locality(graph: Graph, space_name: str) -> Locality:
    """Finds what a rewrite of one space touches.

    Args:
        graph: An analysed graph.
        space_name: Name of one of its spaces.

    Raises:
        MorphirError: if there is no such space.
    """
    require_graph(graph)
    space = graph.space(space_name)
    flow = _activation_flow(graph)
    y = {producer.node for producer in space.producers}
    a = {consumer.tensor for consumer in space.consumers}
    x = {source for node in y for source in flow.predecessors(node)}
    z = {consumer.node for consumer in space.consumers}
    region = _region(flow, _carriers(graph, space), y, a)
    parts = [_in_order(graph, names) for names in (x, y, region, a, z)]
    return Locality(space_name, *parts, sources=_sources(graph, x | y | region | a | z))


def _activation_flow(graph: Graph) -> nx.DiGraph[str]:
    """Returns who reads whom among the nodes that yield more than parameters."""
    mixing = {producer.node for space in graph.spaces.values() for producer in space.producers}
    parameters = parameter_nodes(graph.graph, mixing)
    flow: nx.DiGraph[str] = nx.DiGraph()
    for node in graph.graph.nodes:
        if node not in parameters:
            flow.add_node(node.name)
            flow.add_edges_from(
                (source.name, node.name) for source in node.all_input_nodes if source.name in flow
            )
    return flow


def _carriers(graph: Graph, space: ChannelSpace) -> set[str]:
    """Returns the nodes whose values hold the space's channels."""
    return {
        name
        for name, values in graph.channels.values.items()
        if any(layout.space == space.name for value in values for layout in value.layouts)
    }


def _region(flow: nx.DiGraph[str], carriers: Collection[str], y: set[str], a: set[str]) -> set[str]:
    """Returns the carriers on a path from y to a; a path ends where another producer reads it."""
    passing = nx.subgraph_view(
        flow, filter_node=lambda node: node in carriers, filter_edge=lambda _, target: target not in y
    )
    after = _closure(passing, y)
    before = _closure(passing.reverse(copy=False), a)
    return (after & before) - y


def _closure(flow: nx.DiGraph[str], starts: Iterable[str]) -> set[str]:
    present = [start for start in starts if start in flow]
    found = set(present)
    for start in present:
        found.update(target for _, target in nx.bfs_edges(flow, start))
    return found


def _in_order(graph: Graph, names: Collection[str]) -> tuple[str, ...]:
    return tuple(node.name for node in graph.graph.nodes if node.name in names)


def _sources(graph: Graph, names: Collection[str]) -> tuple[tuple[str, str], ...]:
    nodes: list[fx.Node] = [node for node in graph.graph.nodes if node.name in names]
    return tuple((node.name, str(source)) for node in nodes if (source := source_of(node)) is not None)
