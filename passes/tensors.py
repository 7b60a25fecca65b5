"""What an index map does to one tensor: to values, to gradients and moments, and to theta itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from morphir.analysis.axis_map import AxisMap, Factors
from morphir.errors import RewriteError
from morphir.ir.channels import ChannelLayer, Producer
from morphir.ir.groups import Integers
from morphir.ir.index_map import IndexMap


def rewrite_tensor(
    tensor: torch.Tensor, axes: Sequence[AxisMap], theta: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns new values: gathered along every axis, scaled, plus or minus theta on producer rows.

    Args:
        tensor: The old values.
        axes: One map for each axis that changes.
        theta: Theta in the old tensor's shape, or None for 0.
    """
    new = tensor.detach()
    for axis_map in axes:
        signed = theta is not None and axis_map.signs.any()
        perturbed = None if theta is None else axis_map.gather(theta)
        new = axis_map.gather(new)
        if signed and perturbed is not None:
            new = new + perturbed * axis_map.along(axis_map.signs, new)
            theta = None
        elif perturbed is not None:
            theta = _scaled(perturbed, axis_map, axis_map.scales)
        new = _scaled(new, axis_map, axis_map.scales)
    return _in_format_of(tensor, new)


def rewrite_gradient(gradient: torch.Tensor, axes: Sequence[AxisMap], power: int) -> torch.Tensor:
    """Returns a gradient's or a moment's new values: the chain rule's factor to the given power.

    Args:
        gradient: A tensor of the old parameter's shape.
        axes: One map for each axis that changes.
        power: 1 for gradients and first moments, 2 for second moments.
    """
    new = gradient
    for axis_map in axes:
        new = _scaled(axis_map.gather(new), axis_map, axis_map.gradients**power)
    return _in_format_of(gradient, new)


def _scaled(tensor: torch.Tensor, axis_map: AxisMap, factors: Factors) -> torch.Tensor:
    return tensor if (factors == 1).all() else tensor * axis_map.along(factors, tensor)


def _in_format_of(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    channels_last = (
        old.dim() == 4 and not old.is_contiguous() and old.is_contiguous(memory_format=torch.channels_last)
    )
    return new.contiguous(memory_format=torch.channels_last) if channels_last else new.contiguous()


def perturbed(maps: Sequence[IndexMap], before: ChannelLayer) -> dict[str, list[tuple[IndexMap, Producer]]]:
    """Returns, for each kernel that a theta may be of, the maps that hold thetas, with their producer."""
    found: dict[str, list[tuple[IndexMap, Producer]]] = {}
    for index_map in maps:
        for producer in before.spaces[index_map.space].producers if index_map.thetas else ():
            found.setdefault(producer.parameter, []).append((index_map, producer))
    return found


def full_theta(
    kernel: torch.Tensor, uses: Iterable[tuple[IndexMap, Producer]], before: ChannelLayer
) -> torch.Tensor | None:
    """Lays the thetas of all split groups out in the kernel's own shape; None where there are none.

    Args:
        kernel: The kernel as it is.
        uses: The maps that hold thetas, each with the producer whose kernel it is.
        before: The channel layer as it is.
    """
    full: torch.Tensor | None = None
    for index_map, producer in uses:
        key, space = producer.parameter, before.spaces[index_map.space]
        binding = space.binding(key, producer.out_axis)
        for group, thetas in index_map.thetas.items():
            if key in thetas:
                full = torch.zeros_like(kernel) if full is None else full
                rows = np.empty(0, np.int64) if binding is None else binding.groups.positions(group)
                _place_theta(full, thetas[key], rows, producer, f"{space.name}[{group}]")
    return full


def _place_theta(
    full: torch.Tensor, theta: torch.Tensor, rows: Integers, producer: Producer, site: str
) -> None:
    axis, kernel = producer.out_axis, full.select(producer.out_axis, 0).shape
    expected = tuple(kernel) if len(rows) == 1 else (len(rows), *kernel)
    if tuple(theta.shape) != expected:
        raise RewriteError(
            f"theta of {site} for {producer.parameter} has shape {tuple(theta.shape)}, expected {expected}",
            hint="theta is one output channel's kernel, or [rows, *kernel] for a group of several rows",
        )
    values = theta.to(full).reshape(len(rows), *kernel)
    full.index_copy_(axis, torch.tensor(rows, device=full.device), values.movedim(0, axis))
