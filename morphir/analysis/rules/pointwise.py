"""Pointwise operators: labels that meet at one position are tied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from morphir.analysis.labels import NO_LABEL, Facts, Layer, Layers, compact, label_dims
from morphir.analysis.rules.operation import Operation, Outcome, rule

COPIES = ("clone", "detach", "alias", "_to_copy", "lift_fresh", "contiguous")
Operand = tuple[tuple[int, ...], Layers]


@rule("_prelu_kernel")
def prelu(op: Operation, facts: Facts) -> Outcome:
    """A slope for each channel; a single one would be the slope of all channels."""
    for layer in op.layers_of(op.args[1]):
        facts.keep_several(compact(layer), op.node)
    return pointwise(op, facts)


@rule(
    "clone",
    "copy",
    "detach",
    "alias",
    "_to_copy",
    "lift_fresh",
    "contiguous",
    "dropout",
    "native_dropout",
    "where",
    "masked_fill",
    "rrelu_with_noise",
    "fill",
    "zero",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
)
def pointwise(op: Operation, facts: Facts) -> Outcome:
    """Ties the operands' labels position by position, under broadcasting."""
    operands = [(tuple(t.shape), op.layers_of(t)) for t in op.tensor_inputs]
    return Outcome([(out, unify(operands, tuple(out.shape), facts, op.node)) for out in op.tensor_outputs])


@rule("index_put")
def masked_assignment(op: Operation, facts: Facts) -> Outcome:
    """``x[mask] = 0``: a number wherever the mask is set, as ``masked_fill``; anything else is frozen."""
    target: torch.Tensor = op.args[0]
    indices: Sequence[torch.Tensor | None] = op.argument("indices")
    value: torch.Tensor = op.argument("values")
    mask = indices[0] if len(indices) == 1 else None
    if mask is None or mask.dtype != torch.bool or value.numel() > 1 or op.layers_of(value):
        layers = [layer for tensor in op.tensor_inputs for layer in op.layers_of(tensor)]
        reason = "assigned to by several indices, or more than one number by a mask"
        facts.restrict(layers, "frozen", "in-place-write", reason, op.node)
        return Outcome([(op.result, ())])
    added = target.dim() - mask.dim()
    shape, strides = (*mask.shape, *[1] * added), [0] * added
    masks = tuple(layer.as_strided(shape, (*layer.stride(), *strides)) for layer in op.layers_of(mask))
    operands = [(tuple(target.shape), op.layers_of(target)), (shape, masks)]
    return Outcome([(op.result, unify(operands, tuple(target.shape), facts, op.node))])


@rule("as_strided_")
def restride(op: Operation, facts: Facts) -> Outcome:
    """The in-place form at an unchanged shape only sets the memory format, as fake convolutions do."""
    source = op.args[0]
    if tuple(op.argument("size")) != tuple(source.shape):
        facts.restrict(op.layers_of(source), "frozen", "restrided", "laid out anew by as_strided_", op.node)
    return Outcome([(op.result, op.layers_of(source))])


@rule(
    "rand_like", "randn_like", "randint_like", "new_empty", "new_zeros", "new_ones", "new_full", "bernoulli"
)
@rule("sym_size", "sym_stride", "sym_numel")
def shape_only(op: Operation, facts: Facts) -> Outcome:
    """Reads a shape and no value: the result has no channels."""
    return Outcome([(out, ()) for out in op.tensor_outputs])


def unify(operands: Sequence[Operand], shape: tuple[int, ...], facts: Facts, node: str) -> Layers:
    """Returns the layers of ``operands`` broadcast to ``shape``; ties those along the same dimensions.

    A layer that meets a value without labels is frozen, and of no more interest.
    """
    placed: list[tuple[int, Layer]] = []
    for index, (own, layers) in enumerate(operands):
        lead = len(shape) - len(own)
        for layer in layers:
            broadcast = [d + lead for d in label_dims(layer) if own[d] == 1 and shape[d + lead] > 1]
            if broadcast:
                _freeze_broadcast(layer, facts, node)
                _keep_wide(broadcast, operands, len(shape), facts, node)
            else:
                placed.append((index, layer.expand(shape)))
    meeting = _Meeting(operands, placed, shape)
    placed = [(at, meeting.along_common(at, layer, facts, node)) for at, layer in placed]
    meeting = _Meeting(operands, placed, shape)
    met = [all(meeting.is_labelled(at, dim) for dim in label_dims(layer)) for at, layer in placed]
    alone = [layer for (_, layer), labelled in zip(placed, met, strict=True) if not labelled]
    reason = "combined with a value that has no channels there"
    facts.restrict(alone, "frozen", "meets-constant", reason, node)
    result: list[Layer] = []
    for (_, layer), labelled in zip(placed, met, strict=True):
        if not labelled:
            continue
        twin = next((other for other in result if set(label_dims(other)) & set(label_dims(layer))), None)
        if twin is None:
            result.append(layer)
        else:
            _tie_twins(twin, layer, facts, node)
    return tuple(result)


def _tie_twins(twin: Layer, layer: Layer, facts: Facts, node: str) -> None:
    """Ties two layers position by position; freezes a channel that meets a place without one."""
    mine, theirs = compact(twin), compact(layer)
    met = [max(extents) for extents in zip(mine.shape, theirs.shape, strict=True)]
    left, right = mine.expand(met), theirs.expand(met)
    facts.tie(left, right, "same-position", node)
    if left.min() == NO_LABEL or right.min() == NO_LABEL:
        alone = [left[right == NO_LABEL], right[left == NO_LABEL]]
        reason = "combined with a value that has no channels there"
        facts.restrict(alone, "frozen", "meets-constant", reason, node)
    fixed = _turning_point(left, right)
    if fixed is not None:
        reason = "meets itself in reversed order: its halves would meet each other"
        facts.restrict((fixed,), "frozen", "reversed", reason, node)


def _turning_point(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor | None:
    """Returns the label that stands in the middle of two orders of which one is the other reversed."""
    a, b = left.reshape(-1), right.reshape(-1)
    middle = a.numel() // 2
    if a.numel() < 3 or a.numel() % 2 == 0 or not torch.equal(a, b.flip(0)) or torch.equal(a, b):
        return None
    return a[middle : middle + 1]


def _freeze_broadcast(layer: Layer, facts: Facts, node: str) -> None:
    facts.restrict(
        (layer,), "frozen", "size-1-broadcast", "a dimension of size 1 that is broadcast over channels", node
    )


def _keep_wide(dims: Sequence[int], operands: Sequence[Operand], rank: int, facts: Facts, node: str) -> None:
    """Of the channels that a single one is broadcast over, two stay: one alone would meet it as its like."""
    for own, layers in operands:
        lead = rank - len(own)
        for layer in layers:
            if any(d + lead in dims and own[d] > 1 for d in label_dims(layer)):
                facts.keep_several(compact(layer), node)


@dataclass(frozen=True)
class _Meeting:
    """Operands that meet under broadcasting.

    Attributes:
        operands: Each operand's own shape and layers.
        placed: Layers broadcast to the common shape, with their operand's position.
        shape: The common shape.
    """

    operands: Sequence[Operand]
    placed: Sequence[tuple[int, Layer]]
    shape: tuple[int, ...]

    def is_labelled(self, index: int, dim: int) -> bool:
        """Whether all that an operand meets along a dimension has labels there, or is broadcast."""
        for other, (own, _) in enumerate(self.operands):
            lead = len(self.shape) - len(own)
            labelled = any(at == other and dim in label_dims(layer) for at, layer in self.placed)
            if other != index and dim >= lead and own[dim - lead] > 1 and not labelled:
                return False
        return True

    def along_common(self, index: int, layer: Layer, facts: Facts, node: str) -> Layer:
        """Leaves a layer along the dimensions where what it meets has labels, and ties it along others.

        A gate of shape ``[branches, channels]`` on a stack of branches is such a layer: the channels of the
        same place in each branch go together.
        """
        dims = label_dims(layer)
        common = [dim for dim in dims if self.is_labelled(index, dim)]
        if not common or len(common) == len(dims):
            return layer
        first = layer[tuple(slice(None) if dim in common else slice(0, 1) for dim in range(layer.dim()))]
        left = first.expand(layer.shape)
        facts.tie(layer, left, "same-inner-index", node)
        return left
