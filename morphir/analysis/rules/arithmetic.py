"""Which operators multiply and accumulate, and over which iteration space.

A convolution or matrix product visits every point of an *iteration space* once, with one multiply-accumulate
(MAC) each: for a convolution, output positions x input channels of a group x kernel window. Its extents, and
the channels that lie along them, say what any rewrite of channels does to the cost::

    MACs = product of the iteration space's extents
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from morphir.analysis.labels import LabelledValue, Layers, label_dims
from morphir.analysis.rules.operation import Operation

IterationSpaces = Callable[[Operation], list[LabelledValue]]


def iteration_spaces(
    operation: Operation, outputs: Sequence[tuple[torch.Tensor, Layers]]
) -> list[LabelledValue]:
    """Returns the iteration space of each product that an operator computes.

    Args:
        operation: The ATen call.
        outputs: Its outputs with their labels.
    """
    if operation.name in _CONVOLUTIONS:
        return [_convolution(operation, outputs)]
    if operation.name in _PRODUCTS:
        first = _PRODUCTS[operation.name]
        return [_product(operation, operation.args[first], operation.args[first + 1])]
    if operation.name == "linear":
        return [_linear(operation)]
    return _attention(operation) if "scaled_dot_product" in operation.name else []


_CONVOLUTIONS = ("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}


def _convolution(op: Operation, outputs: Sequence[tuple[torch.Tensor, Layers]]) -> LabelledValue:
    """Every output (for a transposed convolution: input) meets one slice of the kernel."""
    source, weight = op.args[0], op.args[1]
    anchor, layers = (source, op.layers_of(source)) if op.argument("transposed", False) else outputs[0]
    shape = (*anchor.shape, *weight.shape[1:])
    spread_layers = [_placed(layer, shape, range(anchor.dim())) for layer in layers]
    columns = [layer[0] for layer in op.layers_of(weight) if label_dims(layer) == (1,)]
    spread_layers += [_placed(layer, shape, range(anchor.dim(), len(shape))) for layer in columns]
    return LabelledValue(shape, anchor.dtype, tuple(spread_layers))


def _product(op: Operation, left: torch.Tensor, right: torch.Tensor) -> LabelledValue:
    """``[..., m, k] @ [..., k, n]`` visits ``[..., m, k, n]``."""
    rank = left.dim()
    shape = (*left.shape, right.shape[-1])
    layers = [_placed(layer, shape, range(rank)) for layer in op.layers_of(left)]
    layers += [_placed(layer, shape, [*range(rank - 2), rank - 1, rank]) for layer in op.layers_of(right)]
    return LabelledValue(shape, left.dtype, tuple(layers))


def _linear(op: Operation) -> LabelledValue:
    """``[..., in] @ [out, in].T`` visits ``[..., in, out]``."""
    source, weight = op.args[0], op.args[1]
    rank, shape = source.dim(), (*source.shape, weight.shape[0])
    layers = [_placed(layer, shape, range(rank)) for layer in op.layers_of(source)]
    layers += [_placed(layer, shape, [rank, rank - 1]) for layer in op.layers_of(weight)]
    return LabelledValue(shape, source.dtype, tuple(layers))


def _attention(op: Operation) -> list[LabelledValue]:
    """Queries times keys, and weights times values; heads do not change, the values' channels may."""
    query, key, value = op.args[0], op.args[1], op.args[2]
    scores = (*query.shape[:-1], key.shape[-2])
    mixed = (*scores, value.shape[-1])
    along = [*range(value.dim() - 2), value.dim() - 1, value.dim()]
    layers = tuple(_placed(layer, mixed, along) for layer in op.layers_of(value))
    return [
        LabelledValue((*scores, query.shape[-1]), query.dtype, ()),
        LabelledValue(mixed, value.dtype, layers),
    ]


def _placed(layer: torch.Tensor, shape: Sequence[int], dims: Sequence[int]) -> torch.Tensor:
    """Lays a layer's dimensions along ``dims`` of an iteration space; it does not vary along the others."""
    strides = [0] * len(shape)
    for dim, stride in zip(dims, layer.stride(), strict=True):
        strides[dim] = stride
    return layer.as_strided(tuple(shape), strides, layer.storage_offset())
