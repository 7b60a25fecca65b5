"""A leaf module on some of its channels: a twin that reads views of the module's own parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import nn

from morphir.analysis.module_literals import module_attributes
from morphir.ir.channels import Value
from morphir.ir.state import own_state
from morphir.runtime.learning.folded_norm import FoldedNorm
from morphir.runtime.learning.linear_ops import module_apply
from morphir.runtime.learning.own_channels import OwnChannels
from morphir.runtime.learning.selection import Selection, take


class Narrowed:
    """One module and its twin.

    Args:
        module: The module.
        twin: A shallow copy of it, for the narrower program.
        selections: What the twin holds of each of the module's tensors.
    """

    def __init__(
        self, module: nn.Module, twin: nn.Module, selections: Mapping[str, Sequence[Selection]]
    ) -> None:
        self.module = module
        self.twin = twin
        self.selections = selections
        self._seen: dict[str, int] = {}
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Selects again: a copy may be out of date, and a view may be one of memory that was replaced."""
        for name, selections in self.selections.items():
            tensor: torch.Tensor = getattr(self.module, name)
            copied = any(selection.index is not None for selection in selections)
            if copied or self._seen.get(name) != tensor.data_ptr():
                self._seen[name] = tensor.data_ptr()
                self.twin.__dict__[name] = take(selections, tensor.detach())


def narrow(module: nn.Module, channels: OwnChannels, parameters: Mapping[int, Value]) -> Narrowed | None:
    """Returns a module on a region's own channels; None where it holds no others.

    Args:
        module: A leaf module.
        channels: The channels.
        parameters: The id of every tensor that holds channels, and where they lie in it.
    """
    if isinstance(module, FoldedNorm):
        return _narrow_folded(module, channels, parameters)
    own = own_state(module)
    selections = _selections(own, channels, parameters)
    if not selections:
        return None
    twin = copy.copy(module)
    for kind in ("_parameters", "_buffers"):
        held = cast("Mapping[str, object]", vars(module)[kind])
        twin.__dict__[kind] = {name: value for name, value in held.items() if name not in selections}
    shapes = {name: tuple(take(selections.get(name, ()), tensor).shape) for name, tensor in own.items()}
    twin.__dict__.update(module_attributes(module, shapes), training=False)
    return Narrowed(module, twin, selections)


def _narrow_folded(
    module: FoldedNorm, channels: OwnChannels, parameters: Mapping[int, Value]
) -> Narrowed | None:
    """The folded kernel and bias lie as the linear module's kernel and the norm's statistics do."""
    linear, norm = module.parts
    kernel = _selections({"weight": linear.weight}, channels, parameters)
    statistics = _selections({"bias": norm.running_mean}, channels, parameters)
    narrowed = narrow(linear, channels, parameters)
    if narrowed is None:
        return None
    apply = module_apply(narrowed.twin)
    assert apply is not None
    twin = copy.copy(module)
    twin.__dict__.update(apply_kernel=apply)
    return Narrowed(module, twin, {**kernel, **statistics})


def _selections(
    tensors: Mapping[str, torch.Tensor], channels: OwnChannels, parameters: Mapping[int, Value]
) -> dict[str, tuple[Selection, ...]]:
    known = {name: parameters[id(tensor)] for name, tensor in tensors.items() if id(tensor) in parameters}
    found = {name: channels.selections(value) for name, value in known.items()}
    return {name: selections for name, selections in found.items() if selections}
