"""Mixing operators read the labels of their input channels; their outputs get those of the kernel's rows."""

from __future__ import annotations

import torch

from morphir.analysis.labels import Facts, Layer, Layers, label_dims, spread
from morphir.analysis.rules.operation import MixingUse, Operation, Outcome, along, channel_vector, rule


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def convolution(op: Operation, facts: Facts) -> Outcome:
    """Convolution and transposed convolution, dense, grouped or depthwise."""
    source, weight = op.args[0], op.args[1]
    groups, transposed = int(op.argument("groups", 1)), bool(op.argument("transposed", False))
    channel = source.dim() - (weight.dim() - 2) - 1
    inputs = channel_vector(op.layers_of(source), channel, facts, op.node)
    _freeze_window_layers(op, source, channel, facts)
    per_group = weight.shape[1] if not transposed else weight.shape[0] // groups
    if groups > 1 and per_group == 1:
        outputs = _depthwise(op, weight, inputs, groups, facts)
        mixing: list[MixingUse] = []
    else:
        outputs, mixing = _dense(op, weight, inputs, groups, transposed, facts)
    _tie_bias(op, outputs, facts)
    return Outcome([(op.result, along(outputs, channel, op.result.shape))], mixing)


def _freeze_window_layers(op: Operation, source: torch.Tensor, channel: int, facts: Facts) -> None:
    for layer in op.layers_of(source):
        if channel not in label_dims(layer):
            facts.restrict(
                (layer,), "frozen", "window-over-channels", "a window slides over these channels", op.node
            )


def _depthwise(
    op: Operation, weight: torch.Tensor, inputs: torch.Tensor | None, groups: int, facts: Facts
) -> torch.Tensor | None:
    """Output c depends on input c alone: the labels pass through, repeated by the channel multiplier."""
    rows = channel_vector(op.layers_of(weight), 0, facts, op.node)
    if inputs is None or rows is None:
        _freeze_kernel(
            op, weight, "no-channels", "a depthwise kernel over a value that has no channels", facts
        )
        return None
    multiplier = op.result.shape[op.args[0].dim() - weight.dim() + 1] // groups
    repeated = inputs.repeat_interleave(rows.numel() // groups)
    facts.tie(rows, repeated, "parameter", op.node)
    facts.keep_several(inputs, op.node)
    return inputs.repeat_interleave(multiplier)


def _dense(
    op: Operation,
    weight: torch.Tensor,
    inputs: torch.Tensor | None,
    groups: int,
    transposed: bool,
    facts: Facts,
) -> tuple[torch.Tensor | None, list[MixingUse]]:
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    rows = channel_vector(op.layers_of(weight), out_axis, facts, op.node)
    columns = channel_vector(op.layers_of(weight), in_axis, facts, op.node)
    if rows is None or columns is None:
        facts.restrict(
            op.layers_of(op.args[0]),
            "frozen",
            "computed-kernel",
            "read by a kernel that is no parameter",
            op.node,
        )
        return None, []
    if transposed:
        outputs = rows.repeat(groups)
        columns_full = columns
        _tie_groups(columns, groups, facts, op.node)
    else:
        outputs = rows
        columns_full = columns.repeat(groups)
        _tie_groups(rows, groups, facts, op.node)
    if groups > 1:
        facts.keep_several(columns, op.node)
    _read_columns(op, weight, inputs, columns_full, facts)
    return outputs, _use(op, weight, rows, columns, facts)


def _tie_groups(vector: torch.Tensor, groups: int, facts: Facts, node: str) -> None:
    """Keeps the counts of a grouped convolution's groups equal: the same inner index goes together."""
    if groups > 1:
        by_group = vector.reshape(groups, -1)
        facts.tie(by_group, by_group[:1].expand_as(by_group), "equal-per-conv-group", node)


def _read_columns(
    op: Operation, weight: torch.Tensor, inputs: torch.Tensor | None, columns: torch.Tensor, facts: Facts
) -> None:
    if inputs is None:
        facts.restrict((columns,), "frozen", "no-channels", "reads a dimension that has no channels", op.node)
    else:
        facts.tie(inputs, columns, "consumer", op.node)


def _use(
    op: Operation, weight: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, facts: Facts
) -> list[MixingUse]:
    """Notes which parameter's axes a kernel is; a kernel computed from parameters has no theta of its own."""
    if op.origin_of(weight) != "parameter":
        _freeze_kernel(op, weight, "computed-kernel", "a kernel that is computed from parameters", facts)
    (parameter, out_axis), (other, in_axis) = op.axes.owner(int(rows[0])), op.axes.owner(int(columns[0]))
    return [MixingUse(op.node, parameter, in_axis, out_axis)] if parameter == other else []


def _freeze_kernel(op: Operation, weight: torch.Tensor, code: str, reason: str, facts: Facts) -> None:
    facts.restrict(op.layers_of(weight), "frozen", code, reason, op.node)


def _tie_bias(op: Operation, outputs: torch.Tensor | None, facts: Facts) -> None:
    bias = op.argument("bias")
    if bias is None or outputs is None:
        return
    own = channel_vector(op.layers_of(bias), 0, facts, op.node)
    if own is not None:
        facts.tie(outputs, own, "parameter", op.node)


@rule("mm", "bmm")
def matmul(op: Operation, facts: Facts) -> Outcome:
    """A product of two matrices, or of two batches of them."""
    outcome, _ = _product(op, op.args[0], op.args[1], facts)
    return outcome


@rule("addmm", "baddbmm")
def matmul_with_bias(op: Operation, facts: Facts) -> Outcome:
    """A product of two matrices, plus a bias that is broadcast."""
    bias = op.args[0]
    outcome, rows = _product(op, op.args[1], op.args[2], facts)
    own = channel_vector(op.layers_of(bias), bias.dim() - 1, facts, op.node)
    if own is not None and rows is not None:
        facts.tie(rows, own, "parameter", op.node)
    return outcome


@rule("embedding")
def embedding(op: Operation, facts: Facts) -> Outcome:
    """A linear layer over one-hot inputs: a value, not a channel, says which row of the kernel is read."""
    weight, last = op.args[0], op.result.dim() - 1
    rows = channel_vector(op.layers_of(weight), 1, facts, op.node)
    columns = channel_vector(op.layers_of(weight), 0, facts, op.node)
    if rows is None or columns is None:
        return Outcome([(op.result, ())])
    facts.restrict((columns,), "frozen", "looked-up", "an entry that is looked up by its number", op.node)
    return Outcome([(op.result, along(rows, last, op.result.shape))], _use(op, weight, rows, columns, facts))


@rule("_trilinear")
def bilinear_layer(op: Operation, facts: Facts) -> Outcome:
    """``y[o] = sum of x[i] W[o, i, j] z[j]``: linear in either input, so that each is read by columns."""
    left, weight, right = op.args[:3]
    if op.origin_of(weight) != "parameter" or [list(dims) for dims in op.args[3:7]] != _BILINEAR:
        for tensor in op.tensor_inputs:
            facts.restrict(op.layers_of(tensor), "frozen", "bilinear", "contracted by a product", op.node)
        return Outcome([(op.result, ())])
    rows, first, second = (channel_vector(op.layers_of(weight), dim, facts, op.node) for dim in range(3))
    assert rows is not None and first is not None and second is not None
    _read_columns(op, weight, channel_vector(op.layers_of(left), 1, facts, op.node), first, facts)
    _read_columns(op, weight, channel_vector(op.layers_of(right), 1, facts, op.node), second, facts)
    uses = [*_use(op, weight, rows, first, facts), *_use(op, weight, rows, second, facts)]
    return Outcome([(op.result, along(rows, 1, op.result.shape))], uses)


_BILINEAR = [[1, 3], [0], [1, 2], [2, 3]]


@rule("linear")
def linear(op: Operation, facts: Facts) -> Outcome:
    """A linear layer that the backend does not decompose."""
    source, weight = op.args[0], op.args[1]
    outcome, rows = _contract(op, source, source.dim() - 1, weight, 1, 0, facts)
    _tie_bias(op, rows, facts)
    return outcome


def _product(
    op: Operation, left: torch.Tensor, right: torch.Tensor, facts: Facts
) -> tuple[Outcome, torch.Tensor | None]:
    """Contracts left's last dimension with right's last but one; whichever is a parameter is the kernel."""
    last = left.dim() - 1
    if op.origin_of(right) != "activation":
        return _contract(op, left, last, right, last - 1, last, facts)
    if op.origin_of(left) != "activation":
        return _contract(op, right, last - 1, left, last, last - 1, facts)
    return _bilinear(op, left, right, facts), None


def _contract(
    op: Operation,
    source: torch.Tensor,
    dim: int,
    weight: torch.Tensor,
    in_dim: int,
    out_dim: int,
    facts: Facts,
) -> tuple[Outcome, torch.Tensor | None]:
    rows = channel_vector(op.layers_of(weight), out_dim, facts, op.node)
    columns = channel_vector(op.layers_of(weight), in_dim, facts, op.node)
    inputs = channel_vector([x for x in op.layers_of(source) if label_dims(x) == (dim,)], dim, facts, op.node)
    passed = _passing_layers(op, source, dim, facts)
    if rows is None or columns is None:
        facts.restrict(
            op.layers_of(source),
            "frozen",
            "computed-kernel",
            "read by a kernel that is no parameter",
            op.node,
        )
        return Outcome([(op.result, ())]), None
    _read_columns(op, weight, inputs, columns, facts)
    outputs = (*passed, spread(rows, dim, tuple(op.result.shape)))
    return Outcome([(op.result, outputs)], _use(op, weight, rows, columns, facts)), rows


def _passing_layers(op: Operation, source: torch.Tensor, dim: int, facts: Facts) -> Layers:
    """Layers along the other dimensions pass a contraction; one that varies along both cannot."""
    kept: list[Layer] = []
    for layer in op.layers_of(source):
        dims = label_dims(layer)
        if dim in dims and len(dims) > 1:
            facts.restrict(
                (layer,), "frozen", "partly-contracted", "channels are only partly contracted", op.node
            )
        elif dim not in dims:
            kept.append(layer.narrow(dim, 0, 1).expand(op.result.shape))
    return tuple(kept)


def _bilinear(op: Operation, left: torch.Tensor, right: torch.Tensor, facts: Facts) -> Outcome:
    """A product of two activations: what is contracted cannot be split; the outer dimensions pass."""
    last, reason = left.dim() - 1, "contracted with another activation"
    kept: list[Layer] = []
    for tensor, contracted, outer in ((left, last, last - 1), (right, last - 1, last)):
        for layer in op.layers_of(tensor):
            if contracted in label_dims(layer):
                facts.restrict((layer,), "frozen", "bilinear", reason, op.node)
            else:
                vector = channel_vector([layer], outer, facts, op.node)
                kept.extend(along(vector, outer, op.result.shape))
    return Outcome([(op.result, tuple(kept))])


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention")
@rule(
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "scaled_dot_product_attention",
)
def attention(op: Operation, facts: Facts) -> Outcome:
    """Queries and keys are contracted with each other; the values' channels pass."""
    query, key, value = op.args[0], op.args[1], op.args[2]
    for tensor in (query, key):
        facts.restrict(op.layers_of(tensor), "frozen", "attention", "contracted by attention", op.node)
    layers = tuple(
        spread(vector, value.dim() - 1, tuple(op.tensor_outputs[0].shape))
        for layer in op.layers_of(value)
        if label_dims(layer) == (value.dim() - 1,)
        and (vector := channel_vector([layer], value.dim() - 1, facts, op.node)) is not None
    )
    facts.restrict(
        [x for x in op.layers_of(value) if label_dims(x) != (value.dim() - 1,)],
        "frozen",
        "attention",
        "laid out over attention heads",
        op.node,
    )
    first, *rest = op.tensor_outputs
    return Outcome([(first, layers), *((out, ()) for out in rest)])
