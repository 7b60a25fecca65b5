"""What to call the functions of a traced program in source that imports torch and the standard library."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx
from torch._jit_internal import boolean_dispatched  # pyright: ignore[reportUnknownVariableType]
from torch._ops import OpOverload, OpOverloadPacket

from exporters.outputs import makes_record
from exporters.source.helpers import full_name, helper_for
from exporters.source.template import Hole
from morphir.errors import ExportError
from morphir.ir.source import source_of

_NAMESPACES: tuple[tuple[str, ModuleType], ...] = (
    ("torch", torch),
    ("F", F),
    ("torch.linalg", torch.linalg),
    ("torch.fft", torch.fft),
    ("torch.special", torch.special),
    ("math", math),
    ("operator", operator),
)


def _public_functions() -> Iterator[tuple[object, str]]:
    for prefix, namespace in reversed(_NAMESPACES):
        for name, value in vars(namespace).items():
            if callable(value) and not name.startswith("_"):
                yield value, f"{prefix}.{name}"
    for name in ("_assert", "_shape_as_tensor"):
        if hasattr(torch, name):
            yield getattr(torch, name), f"torch.{name}"


_NAMES: Mapping[int, str] = {id(value): name for value, name in _public_functions()}


def function_name(node: fx.Node) -> str:
    """Returns what source calls the function of a ``call_function`` node.

    Raises:
        ExportError: if it is not a function of torch or of the standard library.
    """
    target = node.target
    if id(target) in _NAMES:
        return _NAMES[id(target)]
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        return f"torch.ops.{target}"
    name = getattr(target, "__name__", "")
    if name and inspect.getattr_static(torch.Tensor, name, None) is target:
        return f"torch.Tensor.{name}"
    if makes_record(node):
        return name
    helper = helper_for(node)
    if helper is not None:
        return helper.__name__
    raise ExportError(
        f"{full_name(target)} is not a function of torch, and exported source imports nothing else",
        node=node.name,
        source=source_of(node),
        hint="write it with torch's functions; torch.fx.wrap hides what is inside from the trace",
    )


def parameters(target: object) -> tuple[tuple[str, Hole | None], ...]:
    """Returns the names and defaults of a Python function's parameters; nothing for built-in functions."""
    dispatched = cast("Mapping[object, Any]", boolean_dispatched).get(target)
    function = cast("Callable[..., object]", dispatched["if_false"] if dispatched else target)
    if not inspect.isfunction(function):
        return ()
    return tuple(
        (p.name, None if p.default is p.empty else Hole(p.default))
        for p in inspect.signature(function).parameters.values()
    )
