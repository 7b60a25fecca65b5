"""``program.json``: the traced program's wiring, and every space's locality; rewrites change neither.

What rewrites do change, types and widths, is in ``ir/phase-NN.txt``; names of nodes and spaces are the same.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ConfigDict
from torch import fx

from morphir.analysis.locality import locality
from morphir.ir.channels import Consumer, Producer
from morphir.ir.graph import Graph
from morphir.ir.source import source_of
from morphir.runtime.storage.files import read_validated, to_compact_json, write_atomic

PROGRAM_FILE = "program.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeRecord(_Record):
    """One node of the program.

    Attributes:
        name: Its name in the textual IR.
        block: Path of the innermost module that holds it; the model itself is ``""``.
        inputs: Names of the nodes that it reads.
        spaces: Names of the spaces whose channels it carries.
        source: The user's line that made it, as ``net.py:12``; None for inputs.
        line: The text of that line; empty where the file is not at hand.
    """

    name: str
    block: str
    inputs: tuple[str, ...]
    spaces: tuple[str, ...]
    source: str | None
    line: str


class UseRecord(_Record):
    """A producer or a consumer of a space: a node, and its kernel."""

    node: str
    parameter: str


class SpaceRecord(_Record):
    """One space: who makes it, who reads it, and its locality as node names.

    Attributes:
        producers: Who makes its channels.
        consumers: Who reads them.
        x: Inputs of the producers.
        y: Outputs of the producers.
        region: Channelwise nodes between y and a.
        a: Inputs of the consumers.
        z: Outputs of the consumers, the affected activations.
    """

    producers: tuple[UseRecord, ...]
    consumers: tuple[UseRecord, ...]
    x: tuple[str, ...]
    y: tuple[str, ...]
    region: tuple[str, ...]
    a: tuple[str, ...]
    z: tuple[str, ...]


class Program(_Record):
    """What the file holds.

    Attributes:
        nodes: Every node, in program order.
        spaces: Every space by name, in program order.
    """

    nodes: tuple[NodeRecord, ...]
    spaces: dict[str, SpaceRecord]

    @staticmethod
    def of(graph: Graph) -> Program:
        """Describes an analysed graph."""
        nodes = tuple(_node(graph, node) for node in graph.graph.nodes)
        return Program(nodes=nodes, spaces={name: _space(graph, name) for name in graph.spaces})

    def write(self, directory: Path) -> None:
        """Writes the file into a run directory."""
        write_atomic(directory / PROGRAM_FILE, to_compact_json(self.model_dump(mode="json")))


def read_program(directory: Path) -> Program:
    """Reads the program of a run.

    Raises:
        StorageError: if it is not there, or damaged.
    """
    return read_validated(directory / PROGRAM_FILE, Program)


def _node(graph: Graph, node: fx.Node) -> NodeRecord:
    source = None if node.op == "placeholder" else source_of(node)
    return NodeRecord(
        name=node.name,
        block=_block(node),
        inputs=tuple(read.name for read in node.all_input_nodes),
        spaces=tuple(dict.fromkeys(_carried(graph, node))),
        source=None if source is None else str(source),
        line="" if source is None else linecache.getline(source.file, source.line).strip(),
    )


def _carried(graph: Graph, node: fx.Node) -> Iterator[str]:
    for value in graph.channels.values.get(node.name, ()):
        yield from (layout.space for layout in value.layouts)


def _block(node: fx.Node) -> str:
    """The module whose ``forward`` has the node's line; a called module's own path is left out."""
    stack = cast("Mapping[str, object]", node.meta.get("nn_module_stack", {}))
    paths = [path.partition("@")[0] for path in stack]
    return next(reversed(paths[:-1] if node.op == "call_module" else paths), "")


def _space(graph: Graph, name: str) -> SpaceRecord:
    space, found = graph.space(name), locality(graph, name)
    return SpaceRecord(
        producers=tuple(map(_use, space.producers)),
        consumers=tuple(map(_use, space.consumers)),
        x=found.x,
        y=found.y,
        region=found.region,
        a=found.a,
        z=found.z,
    )


def _use(use: Producer | Consumer) -> UseRecord:
    return UseRecord(node=use.node, parameter=use.parameter)
