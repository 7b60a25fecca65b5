"""Typed access to what modules hold: submodules, parameters and buffers, and their training modes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any, cast

import torch
from torch import nn


def submodules(module: nn.Module, *, every_name: bool = False) -> list[tuple[str, nn.Module]]:
    """Returns every module with its path, once or under every name; ``""`` is ``module`` itself."""
    return list(
        cast("Iterator[tuple[str, nn.Module]]", module.named_modules(remove_duplicate=not every_name))
    )


def named_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns every parameter and buffer once, under its first name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def attribute(module: nn.Module, path: str) -> Any:
    """Returns what a ``get_attr`` node reads."""
    return reduce(getattr, path.split("."), cast("Any", module))


def own_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the parameters and buffers that a module owns itself, without those of its submodules."""
    parameters, buffers = module.named_parameters(recurse=False), module.named_buffers(recurse=False)
    return {**dict(parameters), **dict(buffers)}


def is_persistent(module: nn.Module, buffer: str) -> bool:
    """Whether a buffer is part of the ``state_dict``."""
    return buffer not in cast("set[str]", vars(module)["_non_persistent_buffers_set"])


def make_temporary(module: nn.Module, buffer: str) -> None:
    """Takes a buffer out of the ``state_dict``."""
    cast("set[str]", vars(module)["_non_persistent_buffers_set"]).add(buffer)


def training_modes(module: nn.Module) -> Mapping[str, bool]:
    """Returns the training flag of every submodule."""
    return {path: submodule.training for path, submodule in submodules(module)}


def restore_modes(module: nn.Module, modes: Mapping[str, bool]) -> None:
    """Sets the training flags that :func:`training_modes` returned."""
    for path, submodule in submodules(module):
        submodule.training = modes[path]


@contextmanager
def evaluation_mode(module: nn.Module) -> Generator[None]:
    """Puts a module in evaluation mode, and every submodule back in its own mode afterwards."""
    modes = training_modes(module)
    module.eval()
    try:
        yield
    finally:
        restore_modes(module, modes)
