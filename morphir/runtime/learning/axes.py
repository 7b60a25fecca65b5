"""Options of convolutions and pools, one number for each spatial axis."""

from __future__ import annotations

from collections.abc import Sequence


def along_axes(option: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Returns one number for each spatial axis; one may stand for all, in brackets too, as in PyTorch."""
    if isinstance(option, tuple) and len(option) == axes:
        return option
    numbers = (option,) if isinstance(option, int) else tuple(option)
    return numbers * axes if len(numbers) == 1 else numbers
