"""How exported source, which imports torch and the standard library alone, can name a Python object."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_NAMESPACES: tuple[tuple[str, ModuleType], ...] = (
    ("torch", torch),
    ("F", F),
    ("nn", nn),
    ("torch.linalg", torch.linalg),
    ("torch.fft", torch.fft),
    ("torch.special", torch.special),
    ("math", math),
    ("operator", operator),
)


def public_name(value: object) -> str | None:
    """Returns the name of a function or class of torch or of the standard library; None for others."""
    return _NAMES.get(id(value))


def expression(value: object) -> str | None:
    """Returns an expression for a module, function, class or plain constant; None for anything else."""
    if isinstance(value, ModuleType):
        return _module(value)
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return repr(value)
    name = getattr(value, "__name__", None)
    if isinstance(name, str) and getattr(builtins, name, None) is value:
        return name
    return public_name(value)


def _module(module: ModuleType) -> str | None:
    known = {id(namespace): name for name, namespace in _NAMESPACES}
    inside = module.__name__.startswith("torch.") and not module.__name__.startswith("torch._")
    return known.get(id(module)) or (module.__name__ if inside else None)


def _public() -> Iterator[tuple[object, str]]:
    # What torch's functions in Python call; fx sees it where their tensors come in a list.
    called: Any = vars(torch)["_VF"]
    for name in dir(called.vf):
        yield getattr(called, name), f"torch._VF.{name}"
    for prefix, namespace in reversed(_NAMESPACES):
        for name, value in vars(namespace).items():
            if callable(value) and not name.startswith("_"):
                yield value, f"{prefix}.{name}"
    for name in ("_assert", "_shape_as_tensor"):
        if hasattr(torch, name):
            yield getattr(torch, name), f"torch.{name}"


_NAMES: Mapping[int, str] = {id(value): name for value, name in _public()}
