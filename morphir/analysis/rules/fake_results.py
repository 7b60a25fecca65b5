"""What an operator yields on fake tensors, without its fake kernel where that is slow.

PyTorch finds most of a fake result in Python, and keeps it for the next call with the same shapes. A rewrite
has new ones. For the operators that networks are made of, what comes out is said here; wherever an argument
is anything but plain, the kernel says it, or says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

_EMPTY = torch.ops.aten.empty.memory_format
_RESERVED = {"dtype", "layout", "device"}
_VIEW = torch.ops.aten.view.default


def fake_result(
    mode: FakeTensorMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, known: bool
) -> Any:
    """Runs an operator on fake tensors.

    Args:
        mode: The mode that they are of.
        func: The ATen operator.
        args: Its arguments.
        kwargs: Its keyword arguments.
        known: Whether the program is known to run on these shapes. Fake kernels lay out memory in other ways
            than real ones where a size is 1, so that a view that passes in truth may fail on them.
    """
    if func is _EMPTY and kwargs.keys() == _RESERVED and kwargs["layout"] is torch.strided:
        return fake_empty(mode, args[0], kwargs["dtype"], kwargs["device"])  # as every batch norm asks for
    quick = QUICK.get(func)
    found = None if quick is None or kwargs else quick(*args)
    if found is not None:
        return found
    if func is _VIEW and known:
        try:
            return func(*args, **kwargs)
        except (RuntimeError, ValueError):
            return func(args[0].clone(memory_format=torch.contiguous_format), *args[1:], **kwargs)
    return func(*args, **kwargs)


def _are_plain(*tensors: Any) -> bool:
    """Whether these are fake tensors of one floating-point type on one device, all laid out in order.

    None of them may hold known values, which the kernels pass on.
    """
    first = tensors[0]
    return all(
        isinstance(tensor, FakeTensor)
        and tensor.dtype == first.dtype
        and tensor.is_floating_point()
        and tensor.fake_device == first.fake_device
        and tensor.is_contiguous()
        and tensor.constant is None
        for tensor in tensors
    )


def fake_empty(
    mode: FakeTensorMode, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Returns a fake tensor that is laid out in order; ``torch.empty`` in a fake mode takes much longer."""
    with in_kernel_invocation_manager(mode):
        made = torch.empty(shape, dtype=dtype, device="meta")
    return FakeTensor(mode, made, device)


def _of_shape(shape: Sequence[int], like: FakeTensor) -> torch.Tensor:
    return fake_empty(like.fake_mode, shape, like.dtype, like.fake_device)


def _device(source: Any) -> torch.device | None:
    return source.fake_device if isinstance(source, FakeTensor) else None


def _unchanged(source: Any, *options: Any) -> torch.Tensor | None:
    """Activations in place."""
    return source if _are_plain(source) and _are_numbers(options) else None


def _of_one(source: Any, *options: Any) -> torch.Tensor | None:
    """Activations."""
    return _of_shape(source.shape, source) if _are_plain(source) and _are_numbers(options) else None


def _of_two(left: Any, right: Any) -> torch.Tensor | None:
    """Arithmetic of two tensors of one shape."""
    return _of_shape(left.shape, left) if _are_plain(left, right) and left.shape == right.shape else None


def _are_numbers(options: Sequence[Any]) -> bool:
    return all(isinstance(option, (int, float, str)) for option in options)


def _batch_norm(source: Any, *arguments: Any) -> tuple[torch.Tensor, ...] | None:
    """In evaluation mode, with parameters that fit: the input's shape, and no statistics of the batch."""
    weight, bias, mean, variance, training, _, _ = arguments
    vectors = [mean, variance, *(tensor for tensor in (weight, bias) if tensor is not None)]
    if training or not _are_plain(source, *vectors):
        return None
    if any(vector.shape != source.shape[1:2] for vector in vectors):
        return None
    nothing = _of_shape((0,), source)
    return _of_shape(source.shape, source), nothing, nothing


def _convolution(source: Any, weight: Any, bias: Any, *options: Any) -> torch.Tensor | None:
    """``(extent + 2 padding - dilation (kernel - 1) - 1) / stride + 1`` along every dimension in space."""
    stride, padding, dilation, transposed, _, groups = options
    tensors = [source, weight, *(() if bias is None else (bias,))]
    if transposed or not _are_plain(*tensors) or source.dim() != weight.dim():
        return None
    (samples, channels, *extents), (rows, columns, *kernel) = source.shape, weight.shape
    window = (kernel, stride, padding, dilation)
    if min(*source.shape, *weight.shape) < 1 or {len(option) for option in window} != {len(extents)}:
        return None
    fits = channels == columns * groups and rows % groups == 0 and (bias is None or bias.shape == (rows,))
    if not fits or min(*stride, *dilation) < 1 or min(padding) < 0:
        return None
    found = [
        (extent + 2 * pad - step * (size - 1) - 1) // jump + 1
        for extent, size, jump, pad, step in zip(extents, *window, strict=True)
    ]
    return _of_shape((samples, rows, *found), source) if min(found) > 0 else None


def _concatenation(tensors: Sequence[Any], dim: int = 0) -> torch.Tensor | None:
    """Tensors that differ along one dimension alone."""
    if not tensors or not _are_plain(*tensors):
        return None
    shape = list(tensors[0].shape)
    if not -len(shape) <= dim < len(shape) or any(tensor.dim() != len(shape) for tensor in tensors):
        return None
    dim %= len(shape)
    others = (*shape[:dim], *shape[dim + 1 :])
    if any((*tensor.shape[:dim], *tensor.shape[dim + 1 :]) != others for tensor in tensors):
        return None
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return _of_shape(shape, tensors[0])


_ATEN = torch.ops.aten
_ACTIVATIONS = (
    "relu",
    "silu",
    "sigmoid",
    "tanh",
    "gelu",
    "hardtanh",
    "hardsigmoid",
    "hardswish",
    "leaky_relu",
)
QUICK: dict[Any, Callable[..., Any]] = {
    torch.ops.prim.device.default: _device,
    _ATEN.native_batch_norm.default: _batch_norm,
    _ATEN.convolution.default: _convolution,
    _ATEN.cat.default: _concatenation,
    _ATEN.add.Tensor: _of_two,
    _ATEN.mul.Tensor: _of_two,
    **{getattr(_ATEN, name).default: _of_one for name in _ACTIVATIONS},
    **{getattr(_ATEN, f"{name}_").default: _unchanged for name in _ACTIVATIONS},
}
