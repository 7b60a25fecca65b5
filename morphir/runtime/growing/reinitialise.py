"""New weights for a found architecture: every module draws its own, in program order, under a seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from morphir.ir.remarks import Remark
from morphir.ir.state import own_state, submodules


@torch.no_grad()
def reinitialise(
    model: nn.Module, seed: int, initialise: Callable[[nn.Module], object] | None = None
) -> tuple[Remark, ...]:
    """Calls ``reset_parameters`` of every module that has it; afterwards the CPU's random state is as before.

    Args:
        model: The graph; the parameter objects stay the same.
        seed: Determines the new weights.
        initialise: Called on the model afterwards, for an initialisation of the user's own.

    Returns:
        A remark for each tensor that keeps its values, because its module does not know how to make new ones.
    """
    kept: list[Remark] = []
    with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        for path, module in submodules(model):
            reset: Callable[[], object] | None = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
            else:
                kept += [_kept(f"{path}.{name}" if path else name) for name in own_state(module)]
        if initialise is not None:
            initialise(model)
    return tuple(kept)


def _kept(key: str) -> Remark:
    message = f"{key} keeps its values: its module has no reset_parameters"
    return Remark("missed", "not-reinitialised", message)
