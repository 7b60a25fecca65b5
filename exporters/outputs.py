"""What a program returns, without the classes that it is returned in."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any, cast

from torch import fx

from morphir.ir.graph import Graph


def makes_record(node: fx.Node) -> bool:
    """Whether a node makes a dataclass or a named tuple, as models do to return it."""
    kind: object = node.target
    is_record = is_dataclass(kind) or hasattr(kind, "_fields")
    return node.op == "call_function" and isinstance(kind, type) and is_record


def record_fields(node: fx.Node) -> dict[str, Any]:
    """Returns the fields of a node that makes a record, by name."""
    names = cast("tuple[str, ...]", getattr(node.target, "_fields", ()))
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def plain_outputs(graph: Graph) -> Graph:
    """Makes a graph return dicts in the place of records, without what is None; changes it in place."""
    output = next(node for node in reversed(graph.graph.nodes) if node.op == "output")
    output.args = (_plain(output.args[0]),)
    for node in reversed(graph.graph.nodes):
        if makes_record(node) and not node.users:
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _plain(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return _plain(record_fields(value)) if makes_record(value) else value
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return {key: _plain(item) for key, item in items if item is not None}
    if isinstance(value, (tuple, list)):
        items = cast("Any", value)
        if hasattr(items, "_fields"):
            return _plain(items._asdict())
        return tuple(_plain(item) for item in items if item is not None)
    return value
