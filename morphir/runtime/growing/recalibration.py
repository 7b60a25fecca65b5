"""Running statistics that fit the weights as they are.

While weights are trained, running statistics lag behind them, most of all in deep narrow networks at a high
learning rate. Morphisms are learned and scored with running statistics, so without this they would be paid
for repairing the lag.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from morphir.ir.state import restore_modes, submodules, training_modes
from morphir.runtime.growing.training import Batches, Placement, call


def recalibrate(model: nn.Module, data: Batches, placement: Placement, batches: int) -> None:
    """Replaces the running statistics of every batch norm by their mean over some batches; weights stay.

    Args:
        model: The graph. Parameters, modes and other buffers are as before afterwards.
        data: Training batches.
        placement: Device, autocast, memory format.
        batches: How many of them to use; with 0 nothing happens.
    """
    norms: list[Any] = [module for _, module in submodules(model) if _has_statistics(module)]
    if not norms or not batches:
        return
    with _averaging(model, norms), torch.no_grad():
        for inputs, _ in islice(data, batches):
            with placement.autocast():
                call(model, placement.move(inputs))


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None


@contextmanager
def _averaging(model: nn.Module, norms: list[Any]) -> Generator[None]:
    """Batch norm alone in training mode, with the plain mean over batches as its running statistics."""
    modes = training_modes(model)
    momenta = [norm.momentum for norm in norms]
    counts = [_count(norm) for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None:
                norm.get_buffer("num_batches_tracked").copy_(count)
        restore_modes(model, modes)


def _count(norm: nn.Module) -> torch.Tensor | None:
    found = dict(norm.named_buffers(recurse=False)).get("num_batches_tracked")
    return None if found is None else found.clone()
