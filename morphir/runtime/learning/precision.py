"""Half precision and autocast, as far as the learner has to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

HALF = frozenset({torch.bfloat16, torch.float16})


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Returns what sums, and what is learned, are held in where values are of a dtype."""
    return torch.float32 if dtype in HALF else dtype


def autocast_dtype(kind: str) -> torch.dtype | None:
    """Returns what autocast casts to on a kind of device; None where it is off."""
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def is_half_by_autocast(values: Sequence[torch.Tensor]) -> bool:
    """Whether autocast is on, and something of half precision; parameters are not, so that all can be more.

    A split's u = (a+ + a-)/2 - a is a small difference of large values. Where these are rounded to eight
    bits, nothing is left of it.
    """
    return any(value.dtype in HALF for value in values) and autocast_dtype(values[0].device.type) is not None


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """Lets operators compute in the precision of their inputs."""
    return nullcontext() if autocast_dtype(kind) is None else torch.autocast(kind, enabled=False)


def single(value: Any) -> Any:
    """Returns a tensor of half precision in single precision, and anything else as it is."""
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in HALF else value


def in_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns a tensor in a dtype; itself where it is so already, for what runs at every step."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
