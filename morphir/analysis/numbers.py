"""Numbers that the program computes from sizes, evaluated for other sizes without running the program.

A number of channels alone in a tensor's arithmetic, as in ``q * (width // heads) ** -0.5``, is the model's:
it stays what it is when there are other channels.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch.nn import functional

from morphir.analysis.arguments import argument

Extents = Callable[[str], Sequence[int] | None]
"""Node name to the shape of the one tensor that it yields; None for other nodes."""

_OPERATORS = ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "getitem", "index")
_ARITHMETIC: frozenset[Any] = frozenset(
    (
        *(getattr(operator, name) for name in _OPERATORS),
        *(math.ceil, math.floor, math.sqrt, math.prod, math.gcd, math.log2),
        *(int, float, round, max, min, abs, sum),
    )
)

_NAMES = ("add", "sub", "mul", "div", "true_divide", "pow", "clamp", "clamp_min", "clamp_max", "masked_fill")
COUNTS_AS_NUMBERS: tuple[Any, ...] = (
    *(getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "pow")),
    *(getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv")),
    *(getattr(torch, name) for name in _NAMES),
    *_NAMES,
    *(f"{name}_" for name in _NAMES if name != "true_divide"),
    functional.scaled_dot_product_attention,
)
"""Functions and methods on tensors that take a number as it is, whatever it counts."""


def evaluate(item: object, extents: Extents) -> Any:
    """Returns what a number, or a tuple of numbers, would be on other sizes; None if these do not tell.

    Args:
        item: An argument of a node: a literal, or the node that computes it.
        extents: The sizes.
    """
    if isinstance(item, (tuple, list)):
        items = [evaluate(part, extents) for part in cast("Sequence[object]", item)]
        return None if None in items else tuple(items)
    if not isinstance(item, fx.Node):
        return item if isinstance(item, (int, float)) else None
    read = _read(item, extents)
    if read is not None:
        return read
    if item.op != "call_function" or item.kwargs or item.target not in _ARITHMETIC:
        return None
    arguments = [evaluate(part, extents) for part in item.args]
    if None in arguments:
        return None
    try:
        return cast("Callable[..., Any]", item.target)(*arguments)
    except (ArithmeticError, TypeError, LookupError, ValueError):
        return None


def _read(node: fx.Node, extents: Extents) -> Any:
    """Returns the extents that a node reads from a tensor: ``x.size(1)``, ``x.shape``, ``x.numel()``."""
    source = argument(node, 0, "input")
    if not isinstance(source, fx.Node) or (shape := extents(source.name)) is None:
        return None
    if node.op == "call_method":
        if node.target == "size":
            dim = argument(node, 1, "dim")
            return tuple(shape) if dim is None else shape[dim] if isinstance(dim, int) else None
        return math.prod(shape) if node.target in {"numel", "nelement"} else None
    if node.target is torch.numel:
        return math.prod(shape)
    return tuple(shape) if node.target is getattr and argument(node, 1, "name") == "shape" else None


def counts_channels_alone(item: object, extents: Extents, channel_dims: Callable[[str], set[int]]) -> bool:
    """Whether a number stays what it is when all sizes but those of channel dimensions change.

    Args:
        item: The number.
        extents: The sizes.
        channel_dims: Node name to the dimensions of its value that hold channels.
    """

    def others(name: str) -> Sequence[int] | None:
        shape, dims = extents(name), channel_dims(name)
        return None if shape is None else [n if d in dims else 2 * n + 1 for d, n in enumerate(shape)]

    value = evaluate(item, extents)
    return value is not None and value == evaluate(item, others)
