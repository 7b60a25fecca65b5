"""What an ONNX file says of its origin: no paths of the machine it was made on, but how the network grew."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import onnx

from exporters.source.text import morphir_version
from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite

_HISTORY_BYTES = 1_000_000
_RECENT = 100


def strip_paths(proto: onnx.ModelProto) -> None:
    """Removes doc strings and what torch notes on nodes and values: stack traces with absolute paths."""
    proto.ClearField("doc_string")
    del proto.metadata_props[:]
    for function in proto.functions:
        _clear(function)
        _strip_nodes(function.node)
    _strip_graph(proto.graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    for item in (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        _clear(item)
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        _clear(node)
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for graph in (attribute.g, *attribute.graphs):
                if graph.node:
                    _strip_graph(graph)


def _clear(item: Any) -> None:
    item.ClearField("doc_string")
    del item.metadata_props[:]


def add_lineage(proto: onnx.ModelProto, graph: Graph) -> None:
    """Adds the model's name, MorphIR's version, the number of parameters and the growth history."""
    facts = {
        "morphir.model": graph.module_types.get("", ""),
        "morphir.version": morphir_version(),
        "morphir.parameters": str(sum(parameter.numel() for parameter in graph.parameters())),
        "morphir.rewrites": str(len(graph.history)),
        "morphir.history": history_json(graph.history),
    }
    for key, value in facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value


def history_json(history: tuple[Rewrite, ...]) -> str:
    """Returns the history as JSON; a very long one as widths alone, then as its last rewrites' widths."""
    whole = json.dumps([rewrite.to_json() for rewrite in history])
    if len(whole) <= _HISTORY_BYTES:
        return whole
    brief = json.dumps({"truncated": "widths", "rewrites": [_widths(rewrite) for rewrite in history]})
    if len(brief) <= _HISTORY_BYTES:
        return brief
    return json.dumps(
        {"truncated": "recent", "rewrites": [_widths(rewrite) for rewrite in history[-_RECENT:]]}
    )


def _widths(rewrite: Rewrite) -> dict[str, Any]:
    return {
        "number": rewrite.number,
        "name": rewrite.name,
        "delta_parameters": rewrite.delta_parameters,
        "widths": {index_map.space: [index_map.old_width, index_map.new_width] for index_map in rewrite.maps},
    }
