"""Max pooling over windows that do not overlap, as elementwise operators that a compiler fuses.

The maximum of k x k strided slices needs no pass over memory of its own. Back, each value is compared with
those of its window: the first of equal ones takes the gradient, as with PyTorch's own pooling.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import reduce
from math import prod
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

from morphir.runtime.learning.axes import along_axes

_MOST = 9
"""The largest window: each of its values is compared with all others."""
_MODULES: dict[type[nn.Module], int] = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}


def window_of(module: nn.Module | None) -> tuple[int, ...] | None:
    """Returns the extents of a pooling module's windows; None where it is none, or they overlap or are large.

    Args:
        module: Any module.
    """
    if module is None or type(module) not in _MODULES:
        return None
    pool, axes = cast("Any", module), _MODULES[type(module)]
    kernel, stride, padding, dilation = (
        along_axes(option, axes) for option in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    apart = stride == kernel and not any(padding) and all(step == 1 for step in dilation)
    if not apart or pool.ceil_mode or pool.return_indices or prod(kernel) > _MOST:
        return None
    return kernel


def fuse_pools(program: fx.Graph, root: nn.Module) -> None:
    """Calls :func:`window_max` in the place of a program's pooling modules, where that is the same.

    Args:
        program: The program, which is changed.
        root: Where its modules are found.
    """
    for node in program.nodes:
        if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
            extents = window_of(root.get_submodule(cast(str, node.target)))
            if extents is not None:
                node.op, node.target, node.args = "call_function", window_max, (node.args[0], extents)


def window_max(x: torch.Tensor, extents: tuple[int, ...]) -> torch.Tensor:
    """Returns the largest value of every window; what fills no window at an axis's end is left out.

    Args:
        x: ``[..., *spatial]``.
        extents: Of a window, for each of the last axes.
    """
    return cast(torch.Tensor, cast("Any", _WindowMax).apply(x, extents))


class _WindowMax(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, extents: tuple[int, ...]) -> torch.Tensor:
        return reduce(torch.maximum, _slices(_filled(x, extents), extents))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, tuple[int, ...]], output: torch.Tensor) -> None:
        del output
        x, ctx.extents = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        extents: tuple[int, ...] = ctx.extents
        filled = _filled(x, extents)
        place = _place(filled, extents)
        first = [
            (filled > other) | ((filled == other) & (place <= number))
            for number, other in enumerate(_spread(own, extents) for own in _slices(filled, extents))
        ]
        taken = torch.where(reduce(torch.logical_and, first), _spread(gradients[0], extents), 0)
        left = [(0, size - own) for size, own in zip(x.shape, filled.shape, strict=True)][-len(extents) :]
        if any(behind for _, behind in left):
            taken = functional.pad(taken, list(itertools.chain(*reversed(left))))
        return taken, None


def _filled(x: torch.Tensor, extents: tuple[int, ...]) -> torch.Tensor:
    """Returns the part that whole windows cover."""
    for axis, extent in enumerate(extents, x.dim() - len(extents)):
        # A number, also in a program for any extents: compilers take long over quotients of symbols.
        size = int(x.shape[axis])
        if size % extent:
            x = x.narrow(axis, 0, size - size % extent)
    return x


def _slices(x: torch.Tensor, extents: tuple[int, ...]) -> Iterable[torch.Tensor]:
    """Returns the first values of all windows, then the second ones, and so on."""
    for offsets in itertools.product(*map(range, extents)):
        yield x[(..., *(slice(at, None, extent) for at, extent in zip(offsets, extents, strict=True)))]


def _spread(windows: torch.Tensor, extents: tuple[int, ...]) -> torch.Tensor:
    """Returns each window's value at all of its places."""
    sizes = windows.shape[-len(extents) :]
    outer = windows.shape[: windows.dim() - len(extents)]
    for axis in range(len(extents)):
        windows = windows.unsqueeze(len(outer) + 2 * axis + 1)
    pairs = list(zip(sizes, extents, strict=True))
    wide = windows.expand(*outer, *itertools.chain(*pairs))
    return wide.reshape(*outer, *(size * extent for size, extent in pairs))


def _place(x: torch.Tensor, extents: tuple[int, ...]) -> torch.Tensor:
    """Returns every value's place in its window, in x's type."""
    place = torch.zeros((), dtype=torch.int64, device=x.device)
    for size, extent in zip(x.shape[-len(extents) :], extents, strict=True):
        place = place.unsqueeze(-1) * extent + torch.arange(size, device=x.device) % extent
    return place.to(x.dtype)
