"""Dataclasses and named tuples that a model returns, as exported source defines them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, cast

from torch import fx

from exporters.outputs import makes_record


def is_dict_record(node: fx.Node) -> bool:
    """Whether a node makes a dataclass that is a dict too; source returns a plain dict in its place."""
    return makes_record(node) and issubclass(cast("type[Any]", node.target), Mapping)


def record_sources(nodes: Iterable[fx.Node]) -> dict[str, str]:
    """Returns name and source of every class that the program makes records of."""
    kinds = {cast("type[Any]", n.target) for n in nodes if makes_record(n) and not is_dict_record(n)}
    return {kind.__name__: _source(kind) for kind in sorted(kinds, key=lambda kind: kind.__name__)}


def _source(kind: type[Any]) -> str:
    if hasattr(kind, "_fields"):
        head, names = f"class {kind.__name__}(NamedTuple):", cast("tuple[str, ...]", kind._fields)
    else:
        head = f"@dataclass\nclass {kind.__name__}:"
        names = tuple(field.name for field in fields(kind))
    return "\n".join([head, *(f"    {name}: object" for name in names)])
