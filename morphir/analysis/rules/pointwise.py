"""Pointwise operators: labels that meet at one position are tied."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from morphir.analysis.labels import NO_LABEL, Facts, Layer, Layers, compact, label_dims
from morphir.analysis.rules.operation import Operation, Outcome, rule

COPIES = ("clone", "detach", "alias", "_to_copy", "lift_fresh", "contiguous")
Operand = tuple[tuple[int, ...], Layers]


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
    "_prelu_kernel",
    "where",
    "masked_fill",
    "rrelu_with_noise",
    "fill",
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
@rule("device", "sym_size", "sym_stride", "sym_numel")
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
            if any(own[d] == 1 and shape[d + lead] > 1 for d in label_dims(layer)):
                _freeze_broadcast(layer, facts, node)
            else:
                placed.append((index, layer.expand(shape)))
    met = [_meets_labels(at, layer, placed, operands, shape) for at, layer in placed]
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


def _meets_labels(
    index: int,
    layer: Layer,
    placed: Sequence[tuple[int, Layer]],
    operands: Sequence[Operand],
    shape: tuple[int, ...],
) -> bool:
    """Whether every operand that a layer meets, position by position, has labels there too."""
    for other, (own, _) in enumerate(operands):
        lead = len(shape) - len(own)
        if other == index:
            continue
        for dim in label_dims(layer):
            labelled = any(where == other and dim in label_dims(theirs) for where, theirs in placed)
            if dim >= lead and own[dim - lead] > 1 and not labelled:
                return False
    return True
