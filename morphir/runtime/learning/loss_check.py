"""A loss is a mean over the batch, or one number a sample: what it returns is tried on twice the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from morphir.errors import MorphirError
from morphir.ir.quiet import fixed_randomness

Loss = Callable[[Any, Any], torch.Tensor]


def check_is_mean(loss: Loss, outputs: Any, targets: Any, value: object) -> None:
    """Raises :class:`MorphirError` for a loss that is the batch's sum; waits for the device.

    Twice the same batch must not make twice the loss. A sum would make every score as many times too large
    as the batch has samples.

    Args:
        loss: Of outputs and targets; called once more where it returned a scalar.
        outputs: The model's outputs.
        targets: The batch's targets.
        value: What the loss returned for these.
    """
    if not isinstance(value, torch.Tensor) or value.dim() or value.is_meta:
        return
    twice = _of_twice(loss, outputs, targets)
    if twice is None or twice.numel() != 1:
        return
    twice = twice.reshape(())
    if torch.allclose(twice, 2 * value, rtol=1e-3) and not torch.allclose(twice, value, rtol=1e-3):
        raise MorphirError(
            "the loss is a sum over the batch",
            hint="return the mean over the batch, or one number per sample",
        )


@torch.no_grad()
def _of_twice(loss: Loss, outputs: Any, targets: Any) -> torch.Tensor | None:
    """Returns the loss of the batch after itself; None where the loss takes no such batch."""
    try:
        with fixed_randomness():
            return loss(*pytree.tree_map(_doubled, (outputs, targets)))
    except Exception:  # a loss may well hold one weight for each sample of its batches
        return None


def _doubled(leaf: Any) -> Any:
    return torch.cat([leaf, leaf]) if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf
