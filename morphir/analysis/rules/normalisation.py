"""Normalisations: batch norm is channelwise; group and layer norm mix channels, and allow pruning alone.

Weight norm makes a kernel of two parameters, neither of which is the kernel.
"""

from __future__ import annotations

import torch

from morphir.analysis.labels import Facts, label_dims
from morphir.analysis.rules.operation import Operation, Outcome, channel_vector, rule
from morphir.analysis.rules.pointwise import unify


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
)
@rule(
    "_batch_norm_no_update",
    "_batch_norm_with_update",
    "miopen_batch_norm",
    "_native_batch_norm_legit.no_stats",
)
def batch_norm(op: Operation, facts: Facts) -> Outcome:
    """Ties dimension 1 to the affine parameters and the running statistics."""
    source, parameters = op.tensor_inputs[0], op.tensor_inputs[1:]
    layers = op.layers_of(source)
    _tie_channels(op, source, parameters, facts)
    return Outcome([(out, layers if out.shape == source.shape else ()) for out in op.tensor_outputs])


@rule("native_group_norm")
def group_norm(op: Operation, facts: Facts) -> Outcome:
    """Ties the channels of the same index within each norm group, which the norm mixes.

    With one group for each channel this is an instance norm, and mixes none.
    """
    source, groups = op.args[0], op.argument("group")
    parameters = [t for t in (op.argument("weight"), op.argument("bias")) if t is not None]
    layers = op.layers_of(source)
    vector = _tie_channels(op, source, parameters, facts)
    if vector is not None and groups != source.shape[1]:
        by_group = vector.reshape(groups, -1)
        facts.tie(by_group, by_group[:1].expand_as(by_group), "equal-per-norm-group", op.node)
        facts.keep_several(vector, op.node)
        facts.restrict((vector,), "prune-only", "channel-norm", "a group norm mixes the channels", op.node)
    return Outcome([(out, layers if out.shape == source.shape else ()) for out in op.tensor_outputs])


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(op: Operation, facts: Facts) -> Outcome:
    """Ties the normalised dimensions to the affine parameters; the norm mixes what lies along them."""
    source = op.args[0]
    shape, rank = tuple(source.shape), len(op.argument("normalized_shape"))
    layers = unify([(tuple(t.shape), op.layers_of(t)) for t in op.tensor_inputs], shape, facts, op.node)
    for layer in layers:
        if any(dim >= len(shape) - rank for dim in label_dims(layer)):
            facts.restrict((layer,), "prune-only", "channel-norm", "a layer norm mixes the channels", op.node)
    return Outcome([(out, layers if tuple(out.shape) == shape else ()) for out in op.tensor_outputs])


def _tie_channels(
    op: Operation, source: torch.Tensor, parameters: list[torch.Tensor], facts: Facts
) -> torch.Tensor | None:
    vector = channel_vector(op.layers_of(source), 1, facts, op.node)
    for parameter in parameters:
        own = channel_vector(op.layers_of(parameter), 0, facts, op.node)
        if own is None:
            continue
        if vector is None:
            facts.restrict(
                (own,), "frozen", "no-channels", "normalises a value that has no channels", op.node
            )
        else:
            facts.tie(vector, own, "parameter", op.node)
    return vector


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(op: Operation, facts: Facts) -> Outcome:
    """Freezes the direction, whose axes the kernel keeps, and the magnitude."""
    direction, magnitude = op.args[:2]
    layers = op.layers_of(direction)
    reason = "a kernel that is computed from parameters"
    facts.restrict((*layers, *op.layers_of(magnitude)), "frozen", "computed-kernel", reason, op.node)
    return Outcome(
        [(out, layers if out.shape == direction.shape else ()) for out in op.tensor_outputs[:1]]
        + [(out, ()) for out in op.tensor_outputs[1:]]
    )
