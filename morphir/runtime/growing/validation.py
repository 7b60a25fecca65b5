"""Checks before the first step: the device is there, the data fits the model, the loss is one.

Each fault gets one clear error before anything is trained or written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn

from morphir.errors import MorphirError, did_you_mean
from morphir.ir.graph import Graph
from morphir.ir.state import evaluation_mode
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.events import Callback
from morphir.runtime.growing.training import Batches, Loss, Placement, are_classes, call
from morphir.runtime.learning.batches import batch_samples, check_loss_is_callable, in_batch, loss_of, pair_of
from morphir.runtime.learning.loss_check import check_is_mean


def resolve_device(name: str | None, default: torch.device) -> torch.device:
    """Returns the device of that name.

    Raises:
        MorphirError: if there is no such kind of device, or not on this machine.
    """
    if name is None:
        return default
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MorphirError(f"{name!r} is not a device", hint="for example cpu, cuda, cuda:1, mps") from error
    if not _available(device):
        raise MorphirError(
            f"there is no device {name!r} on this machine", hint=f"available: {', '.join(_devices())}"
        )
    return device


def _available(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def _devices() -> list[str]:
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def check_data(
    model: nn.Module, data: Batches, loss: Loss, placement: Placement, name: str, *, per_sample: bool = False
) -> None:
    """Tries the first batch: one forward pass in evaluation mode, and the loss.

    Args:
        model: The graph.
        data: What is to be checked.
        loss: Of outputs and targets.
        placement: Device, autocast, memory format.
        name: What the data is called in messages (``"training data"``).
        per_sample: Whether the loss has to return one number a sample.

    Raises:
        MorphirError: if the data is empty, can be read only once, or does not fit model or loss.
    """
    check_loss_is_callable(loss)
    batch = _first_batch(data, name)
    first = in_batch(f"the first batch of the {name}")
    with first, evaluation_mode(model), torch.no_grad(), placement.autocast():
        inputs, targets = placement.move(pair_of(batch))
        outputs = call(model, inputs)
        _check_classes(outputs, targets, name)
        value = loss_of(loss, outputs, targets)
        _check_loss(value, batch_samples(inputs), per_sample=per_sample)
        check_is_mean(loss, outputs, targets, value)


def _first_batch(data: object, name: str) -> Any:
    if isinstance(data, Iterator):
        raise MorphirError(
            f"the {name} can be read only once",
            hint="give a list of batches, or a data loader, not an iterator",
        )
    if not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
        raise MorphirError(
            f"the {name} is a {type(data).__name__}, not batches",
            hint="give a list of pairs of inputs and targets, or a data loader",
        )
    batch: Any = next(iter(cast("Iterable[object]", data)), None)
    if batch is None:
        raise MorphirError(f"the {name} is empty", hint="it has to yield pairs of inputs and targets")
    return batch


def _check_classes(outputs: Any, targets: Any, name: str) -> None:
    if not are_classes(outputs, targets) or not targets.numel():
        return
    classes, highest = outputs.shape[1], int(targets.max())
    if highest >= classes:
        raise MorphirError(
            f"wrong number of classes: the model has {classes} outputs, the {name} has a target {highest}",
            hint=f"build the model with at least {highest + 1} classes",
        )


def _check_loss(value: object, samples: int, *, per_sample: bool) -> None:
    if not isinstance(value, torch.Tensor):
        raise MorphirError(f"the loss returns a {type(value).__name__}, not a tensor")
    if value.dim() > 1 or (value.dim() == 1 and value.shape[0] != samples):
        raise MorphirError(
            f"the loss has shape {tuple(value.shape)} for {samples} samples",
            hint="it has to be a mean (a scalar), or one number per sample",
        )
    if per_sample and not value.dim():
        raise MorphirError(
            "calibration_batches needs the loss of each sample, and the loss function returns their mean",
            hint='return one loss a sample: reduction="none"',
        )
    if not value.is_floating_point():
        raise MorphirError(f"the loss is {value.dtype}, not floating point")


def check_configuration(config: object) -> None:
    """Raises :class:`MorphirError` for anything but a :class:`GrowthConfig`, or None for the defaults."""
    if config is not None and not isinstance(config, GrowthConfig):
        raise MorphirError(
            f"the configuration is a {type(config).__name__}, not a GrowthConfig",
            hint='make one with GrowthConfig.preset("laptop", phases=4), or GrowthConfig.of({...})',
        )


def check_kept(graph: Graph, config: GrowthConfig) -> None:
    """Raises :class:`MorphirError` for a pattern of ``keep`` that fits no space, or if it fits all."""
    for pattern in config.keep:
        if not any(fnmatchcase(name, pattern) for name in graph.spaces):
            raise MorphirError(
                f"keep: no channel space is called {pattern!r}",
                hint=f"{did_you_mean(pattern, graph.spaces)}morphir inspect MODEL lists them",
            )
    if config.phases and graph.spaces and all(map(config.keeps, graph.spaces)):
        raise MorphirError(
            "every channel space is kept, and nothing can grow", hint="keep fewer, or phases=0"
        )


def checked_callbacks(callbacks: object) -> tuple[Callback, ...]:
    """Returns the callbacks; raises :class:`MorphirError` for what is no collection of functions."""
    kind = type(callbacks).__name__
    items = tuple(cast("Iterable[object]", callbacks)) if isinstance(callbacks, Iterable) else (None,)
    if not all(map(callable, items)):
        raise MorphirError(
            f"the callbacks are a {kind}, not a list of functions",
            hint="give a list, as callbacks=[on_event]; each function gets one event",
        )
    return cast("tuple[Callback, ...]", items)


def check_resumable(out: object, *, resume: bool) -> None:
    """Raises :class:`MorphirError` where a run is to go on that left nothing on disk."""
    if resume and out is None:
        raise MorphirError("resume=True, but no run is named", hint="give its directory, as out='runs/demo'")
