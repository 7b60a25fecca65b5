"""Broken invariants, and how they are reported.

The fault, the node's line of textual IR among its neighbours, and the user's source line.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from morphir.errors import MorphirError, VerificationError
from morphir.ir.graph import Graph
from morphir.ir.printer import print_node
from morphir.ir.source import source_of

_HINT = (
    "this graph was changed other than through morphir.transform, or MorphIR has a bug; trace the model again"
)
_NEIGHBOURS = 2


@dataclass(frozen=True)
class Fault:
    """A broken invariant: one sentence, and the node that it is about."""

    message: str
    node: str | None = None


Check = Callable[[Graph], Iterator[Fault]]


def failure(graph: Graph, fault: Fault) -> VerificationError:
    """Returns the error for a fault, with the textual IR around the node and the user's source line."""
    if fault.node is None or not any(node.name == fault.node for node in graph.graph.nodes):
        return VerificationError(fault.message, node=fault.node, hint=_HINT)
    source = source_of(graph.node(fault.node))
    text = "\n".join([fault.message, "", *_context(graph, fault.node), *_user_line(graph, fault.node), ""])
    return VerificationError(text, node=fault.node, source=source, hint=_HINT)


def _context(graph: Graph, name: str) -> list[str]:
    names = [node.name for node in graph.graph.nodes]
    at = names.index(name)
    near = names[max(at - _NEIGHBOURS, 0) : at + _NEIGHBOURS + 1]
    return [f"  {'>' if near_name == name else ' '} {_line(graph, near_name)}" for near_name in near]


def _line(graph: Graph, name: str) -> str:
    """Prints a node; one that is too broken to print is shown as fx shows it."""
    try:
        return print_node(graph, name)
    except (AttributeError, LookupError, ValueError, MorphirError):
        return str(graph.node(name).format_node())


def _user_line(graph: Graph, name: str) -> list[str]:
    source = source_of(graph.node(name))
    text = "" if source is None else linecache.getline(source.file, source.line).strip()
    return [f"    {source}: {text}"] if text else []
