"""What to call the functions of a traced program in source that imports torch and the standard library."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import fx
from torch._jit_internal import boolean_dispatched  # pyright: ignore[reportUnknownVariableType]
from torch._ops import OpOverload, OpOverloadPacket

from exporters.outputs import makes_record
from exporters.source.helpers import helper_for
from exporters.source.public_names import public_name
from exporters.source.template import Hole
from morphir.errors import ExportError
from morphir.ir.source import source_of


def function_name(node: fx.Node) -> str:
    """Returns what source calls the function of a ``call_function`` node.

    Raises:
        ExportError: if it is no function of torch or of the standard library, nor a plain Python function.
    """
    target = node.target
    if (known := public_name(target)) is not None:
        return known
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
        f"{getattr(target, '__module__', '')}.{name or target} is not a function of torch, and exported "
        "source imports nothing else",
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
