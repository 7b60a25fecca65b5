"""Source text with literals and variables left open, so that equal code can be shared between modules.

Two modules of one class have the same *skeleton* (the template without its literals); the literals that
differ become constructor arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch

from morphir.errors import ExportError


@dataclass(frozen=True)
class Hole:
    """A literal that may differ between modules of one class; ``hint`` is what to call it then."""

    value: object
    hint: str = "value"


@dataclass(frozen=True)
class Ref:
    """A local variable of the forward function, by number."""

    number: int


@dataclass(frozen=True)
class Argument:
    """An argument of a call: positional if ``name`` is None; left out when its value is the default."""

    value: Template
    name: str | None = None
    default: Hole | None = None


@dataclass(frozen=True)
class Call:
    """A call of ``callee``."""

    callee: Template
    arguments: tuple[Argument, ...]


Piece = str | Hole | Ref | Call
Template = tuple[Piece, ...]


def holes(template: Template) -> Iterator[tuple[Hole, Hole | None]]:
    """Yields every hole with the default of the argument that it fills, in a fixed order."""
    for piece in template:
        if isinstance(piece, Hole):
            yield piece, None
        elif isinstance(piece, Call):
            yield from holes(piece.callee)
            for argument in piece.arguments:
                if len(argument.value) == 1 and isinstance(argument.value[0], Hole):
                    yield argument.value[0], argument.default
                else:
                    yield from holes(argument.value)


def refs(template: Template) -> Iterator[int]:
    """Yields the numbers of the variables that the template reads, in order of appearance."""
    for piece in template:
        if isinstance(piece, Ref):
            yield piece.number
        elif isinstance(piece, Call):
            yield from refs(piece.callee)
            for argument in piece.arguments:
                yield from refs(argument.value)


def skeleton(template: Template) -> tuple[object, ...]:
    """Returns the template without the literals' values, to compare."""
    return tuple(_piece_skeleton(piece) for piece in template)


def _piece_skeleton(piece: Piece) -> object:
    if isinstance(piece, Hole):
        return Hole
    if isinstance(piece, Call):
        arguments = tuple((a.name, repr(a.default), skeleton(a.value)) for a in piece.arguments)
        return (skeleton(piece.callee), arguments)
    return piece


def bind(template: Template, names: Iterator[str | None]) -> Template:
    """Replaces holes by names, in the order of :func:`holes`; ``None`` leaves the literal."""
    return tuple(_bind_piece(piece, names) for piece in template)


def _bind_piece(piece: Piece, names: Iterator[str | None]) -> Piece:
    if isinstance(piece, Hole):
        return next(names) or piece
    if isinstance(piece, Call):
        callee = bind(piece.callee, names)
        return Call(callee, tuple(replace(a, value=bind(a.value, names)) for a in piece.arguments))
    return piece


def render(template: Template, variables: dict[int, str] | None = None) -> str:
    """Returns the template as one line of source."""
    return "".join(_render_piece(piece, variables or {}) for piece in template)


def _render_piece(piece: Piece, variables: dict[int, str]) -> str:
    if isinstance(piece, str):
        return piece
    if isinstance(piece, Hole):
        return literal(piece.value)
    if isinstance(piece, Ref):
        return variables[piece.number]
    shown = [
        (f"{argument.name}=" if argument.name else "") + render(argument.value, variables)
        for argument in piece.arguments
        if not _is_default(argument)
    ]
    return f"{render(piece.callee, variables)}({', '.join(shown)})"


def _is_default(argument: Argument) -> bool:
    value = argument.value[0] if len(argument.value) == 1 else None
    return (
        argument.default is not None
        and isinstance(value, Hole)
        and literal(value.value) == literal(argument.default.value)
    )


def literal(value: object) -> str:
    """Returns a Python expression for a constant; it needs no import but torch.

    Raises:
        ExportError: if the value is none that source can hold.
    """
    if value is None or value is Ellipsis or isinstance(value, (bool, int)):
        return "..." if value is Ellipsis else repr(value)
    if isinstance(value, (float, complex)):
        return _number(value)
    if isinstance(value, str):
        text = repr(value)
        return f'"{text[1:-1]}"' if '"' not in text and "\\'" not in text else text
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return str(value)
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    return _collection(value)


def _number(value: float | complex) -> str:
    text = repr(value)
    if isinstance(value, complex):
        return f'complex("{text.strip("()")}")'
    return f'float("{text}")' if text.lstrip("-") in {"inf", "nan"} else text


def _collection(value: object) -> str:
    if isinstance(value, (tuple, list)):
        items = [literal(item) for item in cast("tuple[object, ...]", value)]
        if isinstance(value, list):
            return f"[{', '.join(items)}]"
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if isinstance(value, dict):
        pairs = cast("dict[object, object]", value).items()
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in pairs) + "}"
    if isinstance(value, slice):
        bounds = cast("slice[object, object, object]", value)
        return f"slice({literal(bounds.start)}, {literal(bounds.stop)}, {literal(bounds.step)})"
    raise ExportError(
        f"the program holds a constant that source cannot: {type(value).__name__}",
        hint="constants may be numbers, strings, dtypes, devices, and tuples, lists or dicts of these",
    )
