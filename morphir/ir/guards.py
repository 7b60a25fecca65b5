"""Guards: what the traced program took for granted about its inputs' shapes, checked whenever it runs.

Where the model's control flow asks a shape (``if x.shape[2] % 2``), the trace follows the answer that the
example inputs give, and a node ``guard(value, question, expected, ...)`` holds every later input to it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import fx
from torch.fx.node import has_side_effect

from morphir.errors import GuardError
from morphir.ir.operators import INFIX

_HINT = "the model takes another path for such inputs; trace it again with example inputs like these"
_ANSWERS: Mapping[str, Callable[[Any], Any]] = {
    "truth": bool,
    "value": lambda value: value,
    "length": len,
    "keys": list,
    "none": lambda value: value is None,
}
_FORMS: Mapping[str, str] = {"length": "len({})", "keys": "list({})", "none": "{} is None"}


def guard(value: object, question: str, expected: object, text: str, where: str | None = None) -> None:
    """Raises :class:`GuardError` where the program meets another value than the one that it was traced for.

    Args:
        value: What the program computed.
        question: What was asked of it: ``"truth"``, ``"value"``, ``"length"``, ``"keys"`` or ``"none"``.
        expected: The answer that the trace followed.
        text: The value in the user's words, as ``x.shape[2] % 2``.
        where: The user's line.
    """
    found = answer(value, question)
    if found != expected:
        asked = _FORMS.get(question, "{}").format(text)
        raise GuardError(
            f"the program was traced where `{asked}` is {_shown(expected)}; here it is {_shown(found)}",
            source=where,
            hint=_HINT,
        )


has_side_effect(guard)


def answer(value: object, question: str) -> object:
    """Returns what a question about a value has for an answer."""
    return _ANSWERS[question](value)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def is_guard(node: fx.Node) -> bool:
    """Whether the node only checks what the program takes for granted."""
    return node.op == "call_function" and node.target in {guard, torch._assert}  # pyright: ignore[reportPrivateUsage]


def describe(argument: object) -> str:
    """Returns an argument as a user would write it: ``conv.shape[2] % 2``."""
    if isinstance(argument, fx.Node):
        return _describe_node(argument)
    if isinstance(argument, slice):
        bounds = cast("slice[object, object, object]", argument)
        return ":".join("" if bound is None else describe(bound) for bound in (bounds.start, bounds.stop))
    if isinstance(argument, (tuple, list)):
        inner = ", ".join(map(describe, cast("tuple[object, ...]", argument)))
        return f"[{inner}]" if isinstance(argument, list) else f"({inner})"
    return str(argument) if isinstance(argument, (torch.dtype, torch.device)) else repr(argument)


def _describe_node(node: fx.Node) -> str:
    target, args = node.target, node.args
    if not is_size(node):
        return str(target) if node.op == "placeholder" else node.name
    if node.op == "call_method":
        return f"{_operand(args[0])}.{target}({', '.join(map(describe, args[1:]))})"
    if target is getattr:
        return f"{_operand(args[0])}.{args[1]}"
    if target is operator.getitem:
        return f"{_operand(args[0])}[{describe(args[1])}]"
    return f"{_operand(args[0])} {INFIX[target]} {_operand(args[1])}"


def _operand(argument: object) -> str:
    text = describe(argument)
    return f"({text})" if isinstance(argument, fx.Node) and " " in text else text


_SIZE_METHODS = frozenset({"size", "dim", "numel", "nelement"})
_SIZE_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "is_cuda"})


def is_size(node: fx.Node) -> bool:
    """Whether the node reads a shape or the like, or computes with what others read.

    Its value then is the same wherever in the program it is computed.
    """
    if node.op == "call_method":
        return node.target in _SIZE_METHODS
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _SIZE_ATTRIBUTES
    arithmetic = node.target is operator.getitem or node.target in INFIX
    return arithmetic and bool(node.all_input_nodes) and all(map(is_size, node.all_input_nodes))
