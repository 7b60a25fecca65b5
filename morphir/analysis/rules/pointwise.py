"""Pointwise operators: labels that meet at one position are tied."""

from __future__ import annotations

from collections.abc import Sequence

from morphir.analysis.labels import Facts, Layer, Layers, compact, label_dims
from morphir.analysis.rules.operation import Operation, Outcome, rule

COPIES = ("clone", "detach", "alias", "_to_copy", "lift_fresh", "contiguous", "expand")
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
    "expand",
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


@rule("rand_like", "randn_like", "randint_like", "new_empty", "new_zeros", "new_ones", "new_full", "bernoulli")
@rule("device", "sym_size", "sym_stride", "sym_numel")
def shape_only(op: Operation, facts: Facts) -> Outcome:
    """Reads a shape and no value: the result has no channels."""
    return Outcome([(out, ()) for out in op.tensor_outputs])


def unify(operands: Sequence[Operand], shape: tuple[int, ...], facts: Facts, node: str) -> Layers:
    """Returns the layers of ``operands`` broadcast to ``shape``; ties those along the same dimensions."""
    placed: list[tuple[int, Layer]] = []
    for index, (own, layers) in enumerate(operands):
        lead = len(shape) - len(own)
        for layer in layers:
            if any(own[d] == 1 and shape[d + lead] > 1 for d in label_dims(layer)):
                _freeze_broadcast(layer, facts, node)
            else:
                placed.append((index, layer.expand(shape)))
    for index, layer in placed:
        _freeze_where_unlabelled(index, layer, placed, operands, shape, facts, node)
    result: list[Layer] = []
    for _, layer in placed:
        twin = next((other for other in result if set(label_dims(other)) & set(label_dims(layer))), None)
        if twin is None:
            result.append(layer)
        else:
            mine, theirs = compact(twin), compact(layer)
            met = [max(extents) for extents in zip(mine.shape, theirs.shape, strict=True)]
            left, right = mine.expand(met), theirs.expand(met)
            facts.tie(left, right, "same-position", node)
    return tuple(result)


def _freeze_broadcast(layer: Layer, facts: Facts, node: str) -> None:
    facts.restrict(
        (layer,), "frozen", "size-1-broadcast", "a dimension of size 1 that is broadcast over channels", node
    )


def _freeze_where_unlabelled(
    index: int,
    layer: Layer,
    placed: Sequence[tuple[int, Layer]],
    operands: Sequence[Operand],
    shape: tuple[int, ...],
    facts: Facts,
    node: str,
) -> None:
    """Freezes a layer that meets, position by position, a value whose positions are no channels."""
    for other, (own, _) in enumerate(operands):
        lead = len(shape) - len(own)
        if other == index:
            continue
        for dim in label_dims(layer):
            labelled = any(where == other and dim in label_dims(theirs) for where, theirs in placed)
            if dim >= lead and own[dim - lead] > 1 and not labelled:
                facts.restrict(
                    (layer,),
                    "frozen",
                    "meets-constant",
                    "combined with a value that has no channels there",
                    node,
                )
