"""Half precision and autocast, as far as the learner has to know of them."""

from __future__ import annotations

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


def in_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns a tensor in a dtype; itself where it is so already, for what runs at every step."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
