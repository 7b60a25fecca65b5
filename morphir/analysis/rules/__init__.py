"""What each ATen operator does to labels: one table, filled by one module for each kind of operator."""

from __future__ import annotations

import torch

from morphir.analysis.labels import Facts, label_dims
from morphir.analysis.rules import blocks as _blocks
from morphir.analysis.rules import mixing as _mixing
from morphir.analysis.rules import movement, pointwise
from morphir.analysis.rules import normalisation as _normalisation
from morphir.analysis.rules import spatial as _spatial
from morphir.analysis.rules.arithmetic import iteration_spaces
from morphir.analysis.rules.operation import RULES, MixingUse, Operation, Origin, Outcome

__all__ = ["MixingUse", "Operation", "Origin", "Outcome", "apply_rule", "iteration_spaces", "result_origin"]


REGISTERED = (_blocks, _mixing, movement, _normalisation, pointwise, _spatial)


def apply_rule(operation: Operation, facts: Facts) -> Outcome:
    """Applies an operator's rule: its own, or the pointwise one where PyTorch tags it so, or a freeze."""
    found = RULES.get(operation.name) or RULES.get(operation.name.removesuffix("_"))
    if found is None and torch.Tag.pointwise in operation.func.tags:
        found = pointwise.pointwise
    outcome = (found or freeze)(operation, facts)
    if operation.name.endswith("_") and operation.tensor_inputs:
        _check_write(operation, outcome, facts)
    return outcome


def _check_write(operation: Operation, outcome: Outcome, facts: Facts) -> None:
    """Freezes an in-place write of channels where none were: other views of that memory would miss them."""
    before = {label_dims(layer) for layer in operation.layers_of(operation.tensor_inputs[0])}
    after = {label_dims(layer) for _, layers in outcome.outputs for layer in layers}
    if before != after:
        layers = [layer for tensor in operation.tensor_inputs for layer in operation.layers_of(tensor)]
        facts.restrict(
            layers, "frozen", "in-place-write", "written into a tensor of other channels", operation.node
        )


_MOVING = (movement.move, movement.unsqueeze, movement.expand)


def result_origin(operation: Operation) -> Origin:
    """Returns where a result comes from: a moved parameter stays one, arithmetic makes a new value."""
    origins = {operation.origin_of(tensor) for tensor in operation.tensor_inputs}
    if not origins or "activation" in origins:
        return "activation"
    unchanged = RULES.get(operation.name) in _MOVING or operation.name in pointwise.COPIES
    return "parameter" if origins == {"parameter"} and unchanged else "computed"


def freeze(operation: Operation, facts: Facts) -> Outcome:
    """Freezes everything that an operator without a rule touches; never guesses."""
    for tensor in operation.tensor_inputs:
        facts.restrict(
            operation.layers_of(tensor),
            "frozen",
            "unknown-operator",
            f"read by {operation.name}, an operator that the analysis has no rule for",
            operation.node,
        )
    return Outcome([(tensor, ()) for tensor in operation.tensor_outputs])
