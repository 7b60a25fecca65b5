"""Typed access to what modules hold: submodules, parameters and buffers, and their training modes."""

from __future__ import annotations

import copy
import operator
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import nn

from morphir.errors import MorphirError


def submodules(module: nn.Module, *, every_name: bool = False) -> list[tuple[str, nn.Module]]:
    """Returns every module with its path, once or under every name; ``""`` is ``module`` itself."""
    return list(
        cast("Iterator[tuple[str, nn.Module]]", module.named_modules(remove_duplicate=not every_name))
    )


Module = TypeVar("Module", bound=nn.Module)
_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", *_BACKWARD_HOOKS)


def is_plain(module: nn.Module) -> bool:
    """Whether calling a module runs its class's forward alone: no hooks, and no forward of its own."""
    held = vars(module)
    return "forward" not in held and not any(held.get(name) for name in _HOOKS)


def require_autograd(what: str) -> None:
    """Raises :class:`MorphirError` in a ``torch.inference_mode()``, whose tensors never have gradients.

    Args:
        what: What needs them.
    """
    if torch.is_inference_mode_enabled():
        raise MorphirError(
            f"{what} needs autograd, which torch.inference_mode() rules out",
            hint="leave that block first; torch.no_grad() does no harm",
        )


def copied(module: Module, memo: dict[int, Any] | None = None) -> Module:
    """Returns a deep copy whose parameters are leaves, and require grad where the module's do.

    The copies of a scripted module's parameters would be recorded, and so no leaves.

    Args:
        module: The module.
        memo: What was copied before, as ``copy.deepcopy`` has it.
    """
    with torch.no_grad():
        found = copy.deepcopy(module, memo)
    for parameter, own in zip(found.parameters(), module.parameters(), strict=True):
        parameter.requires_grad_(own.requires_grad)
    return found


def drop_backward_hooks(module: nn.Module) -> bool:
    """Takes a module's own backward hooks away; returns whether it had any."""
    hooks = [held for name in _BACKWARD_HOOKS if (held := vars(module).get(name))]
    for held in hooks:
        held.clear()
    return bool(hooks)


def modules_within(module: nn.Module) -> list[nn.Module]:
    """Returns every module once, ``module`` itself first; for what runs at every step, where names cost."""
    found, order = {module}, [module]
    for parent in order:
        children: Iterable[nn.Module | None] = vars(parent)["_modules"].values()
        for child in children:
            if child is not None and child not in found:
                found.add(child)
                order.append(child)
    return order


def held_tensors(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    """Returns the parameters and buffers that modules own themselves, without names."""
    tables = [vars(module)[kind] for module in modules for kind in ("_parameters", "_buffers")]
    return [tensor for table in tables for tensor in table.values() if tensor is not None]


class Holdings:
    """What a module holds, as it is now; for what asks at every step whether it still is the same.

    Hooks, options of modules (a convolution's stride) and values that are written into a tensor are not
    among it.

    Args:
        module: The module.

    Attributes:
        modules: Every module within it, itself first.
        tensors: Their parameters and buffers.
    """

    def __init__(self, module: nn.Module) -> None:
        self.modules = modules_within(module)
        self.tensors = held_tensors(self.modules)
        kinds = ("_modules", "_parameters", "_buffers")
        self._tables = [vars(module)[kind] for module in self.modules for kind in kinds]
        self._held = self._current()
        self._kinds = list(map(_KIND, self.tensors))

    def are_current(self) -> bool:
        """Whether it holds the same modules and tensors, of the same types and on the same devices."""
        current = self._current()
        if len(current) != len(self._held) or not all(map(operator.is_, current, self._held)):
            return False
        # A parameter keeps its identity where a module is moved.
        return self._kinds == list(map(_KIND, self.tensors))

    def _current(self) -> list[object]:
        return list(chain.from_iterable(map(_VALUES, self._tables)))


_VALUES = operator.methodcaller("values")
_KIND = operator.attrgetter("dtype", "device")


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


@contextmanager
def frozen(modules: Iterable[nn.Module], tensors: Iterable[torch.Tensor]) -> Generator[None]:
    """Evaluation mode and no tensor that requires grad; afterwards everything is as it was.

    Args:
        modules: Every module, as :func:`modules_within` returns them.
        tensors: Their parameters and buffers.
    """
    training = [module for module in modules if module.training]
    trainable = [tensor for tensor in tensors if tensor.requires_grad]
    try:
        _set_training(training, mode=False)
        for parameter in trainable:
            parameter.requires_grad = False
        yield
    finally:
        _set_training(training, mode=True)
        for parameter in trainable:
            parameter.requires_grad = True


def _set_training(modules: Iterable[nn.Module], *, mode: bool) -> None:
    for module in modules:
        held = vars(module)
        # A plain flag needs no look-up among parameters and submodules; scripted modules keep theirs in C++.
        if "training" in held:
            held["training"] = mode
        else:
            module.training = mode
