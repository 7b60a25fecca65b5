"""Constructs that keep channels apart, and those that gate or normalise them."""

from __future__ import annotations

from random_networks.constructs.mixing import divisors, mix
from random_networks.constructs.table import both, construct, dims, images, maps
from random_networks.draft import Draft, Value

_ACTIVATIONS = (
    *(
        "torch.relu({})",
        "F.gelu({})",
        "F.silu({})",
        "{}.sigmoid()",
        "F.hardswish({})",
        "F.leaky_relu({}, 0.1)",
    ),
    *("{}.tanh()", "F.relu6({})", "F.softplus({})", "F.hardsigmoid({})", "{}.clamp(-1, 1)", "F.elu({})"),
    *(
        "{0} * {0}",
        "{0} * torch.tanh(F.softplus({0}))",
        "1 - {0} / 2",
        "torch.where({0} > 0, {0}, {0} * 0.1)",
    ),
    *("{}.abs().sqrt()", "(-{}).exp().add(1).reciprocal()", "torch.maximum({0}, {0} * 0.3)"),
)
_MODULES = (
    "nn.ReLU()",
    "nn.ReLU(inplace=True)",
    "nn.SiLU()",
    "nn.Hardswish()",
    "nn.Mish()",
    "nn.Dropout(0.3)",
)


@construct()
def activation(draft: Draft, value: Value) -> Value:
    return draft.line(draft.pick(_ACTIVATIONS).format(value.name), value.shape)


@construct()
def activation_module(draft: Draft, value: Value) -> Value:
    layer = draft.part("act", draft.pick(_MODULES))
    # In place: on a copy, since an earlier line may read the value too.
    return draft.line(f"{layer}({value.name}.clone())", value.shape)


@construct()
def prelu(draft: Draft, value: Value) -> Value:
    layer = draft.part("prelu", f"nn.PReLU({draft.pick((value.channels, 1))})")
    return draft.line(f"{layer}({value.name})", value.shape)


@construct()
def batch_norm(draft: Draft, value: Value) -> Value:
    options = draft.pick(("", "", ", affine=False", ", track_running_stats=False"))
    layer = draft.part("norm", f"nn.BatchNorm{max(value.rank, 1)}d({value.channels}{options})")
    return draft.line(f"{layer}({value.name})", value.shape)


@construct(both(maps, lambda draft, value: value.positions > 1))
def instance_norm(draft: Draft, value: Value) -> Value:
    options = draft.pick(("", ", affine=True", ", affine=True, track_running_stats=True"))
    layer = draft.part("norm", f"nn.InstanceNorm{value.rank}d({value.channels}{options})")
    # A mean over positions right after the norm would be 0 whatever its input, which nothing then influences.
    return draft.line(f"{layer}({value.name}).relu()", value.shape)


@construct(lambda draft, value: value.positions * value.channels > 1)
def group_norm(draft: Draft, value: Value) -> Value:
    groups = draft.pick([d for d in divisors(value.channels) if value.channels // d * value.positions > 1])
    affine = draft.pick(("", ", affine=False"))
    layer = draft.part("norm", f"nn.GroupNorm({groups}, {value.channels}{affine})")
    bent = ".relu()" if groups == value.channels else ""  # as after an instance norm, which it then is
    return draft.line(f"{layer}({value.name}){bent}", value.shape)


@construct(lambda draft, value: value.channels > 1)
def layer_norm(draft: Draft, value: Value) -> Value:
    """Over the channels, module or functional with a literal shape; over channels and positions."""
    own = value.channels
    module = draft.part("norm", f"nn.LayerNorm({own})")
    last = f"{value.name}.movedim(1, -1)"
    forms = (
        f"{module}({last}).movedim(-1, 1).contiguous()",
        f"F.layer_norm({last}, ({own},), {module}.weight, {module}.bias).movedim(-1, 1).contiguous()",
        f"F.layer_norm({last}, ({own},)).movedim(-1, 1).contiguous()",
        f"F.layer_norm({value.name}, ({own},{dims(value)[1:]}))",
        f"F.layer_norm({value.name}, {value.name}.shape[1:])",
    )
    return draft.line(draft.pick(forms), value.shape)


@construct(both(maps, lambda draft, value: min(value.space) >= 2))
def pool(draft: Draft, value: Value) -> Value:
    rank, name, half = value.rank, value.name, [extent // 2 for extent in value.space]
    forms = (
        (f"F.max_pool{rank}d({name}, 2)", half),
        (f"F.avg_pool{rank}d({name}, 2)", half),
        (f"F.avg_pool{rank}d({name}, 3, stride=1, padding=1)", value.space),
        (f"F.adaptive_avg_pool{rank}d({name}, 2)", [2] * rank),
        (f"F.adaptive_max_pool{rank}d({name}, 1)", [1] * rank),
        (f"F.adaptive_avg_pool{rank}d({name}, 1)", [1] * rank),
        (f"{name}.amax(-1, keepdim=True)", [*value.space[:-1], 1]),
        (f"{name}[..., ::2]", [*value.space[:-1], -(-value.space[-1] // 2)]),
    )
    expression, space = draft.pick(forms)
    return draft.line(expression, (value.channels, *space))


@construct(both(maps, lambda draft, value: max(value.space) <= 4))
def interpolate(draft: Draft, value: Value) -> Value:
    modes = ("'nearest'", "'bilinear', align_corners=False") if value.rank == 2 else ("'nearest'",)
    expression = f"F.interpolate({value.name}, scale_factor=2, mode={draft.pick(modes)})"
    return draft.line(expression, (value.channels, *(2 * extent for extent in value.space)))


@construct()
def layer_scale(draft: Draft, value: Value) -> Value:
    scale = draft.parameter(value.channels, *([1] * value.rank))
    return draft.line(f"{value.name} * {scale}", value.shape)


@construct()
def channel_buffer(draft: Draft, value: Value) -> Value:
    """A buffer of one number for each channel, persistent or not."""
    shape = ", ".join(map(str, (1, value.channels, *([1] * value.rank))))
    persistent = draft.pick(("", ", persistent=False"))
    name = f"offset{len(draft.init)}"
    draft.init.append(f'self.register_buffer("{name}", torch.randn({shape}){persistent})')
    return draft.line(f"{value.name} + self.{name}", value.shape)


@construct(both(maps, lambda draft, value: value.positions > 1))
def position_bias(draft: Draft, value: Value) -> Value:
    """A parameter of one number for each position, or for each position of each channel."""
    bias = draft.parameter(draft.pick((1, value.channels)), *value.space)
    return draft.line(f"{value.name} + {bias}", value.shape)


@construct()
def dropout(draft: Draft, value: Value) -> Value:
    kind = f"F.dropout{value.rank}d" if value.rank else "F.dropout"
    return draft.line(f"{kind}({value.name}, 0.2, training=self.training)", value.shape)


@construct()
def detach(draft: Draft, value: Value) -> Value:
    return draft.line(f"{value.name} + {value.name}.detach().sigmoid()", value.shape)


@construct(maps)
def squeeze_excite(draft: Draft, value: Value) -> Value:
    """By convolution, or by linear layers and a view, literal or not."""
    rank, name, own, hidden = value.rank, value.name, value.channels, draft.pick((2, 3, 1))
    around = tuple(range(2, rank + 2))
    if draft.pick((True, False)):
        pooled = draft.line(f"{name}.mean({around}, keepdim=True)", (own, *([1] * rank)))
        gate = mix(
            draft, draft.line(f"{mix(draft, pooled, hidden).name}.relu()", (hidden, *pooled.space)), own
        )
        return draft.line(f"{name} * {gate.name}.sigmoid()", value.shape)
    pooled = draft.line(f"{name}.mean({around})", (own,))
    gate = mix(draft, draft.line(f"{mix(draft, pooled, hidden).name}.relu()", (hidden,)), own)
    ones = ", 1" * rank
    forms = (
        f".view(-1, {own}{ones})",
        f".view({name}.size(0), {own}{ones})",
        f".reshape({name}.shape[0], -1{ones})",
        f".view(*{name}.shape[:2]{ones})",
        ".unsqueeze(-1)" * rank,
        f"[:, :{', None' * rank}]",
        f"[(...,{' None,' * rank})]",
    )
    return draft.line(f"{name} * {gate.name}.sigmoid(){draft.pick(forms)}", value.shape)


@construct(maps)
def spatial_gate(draft: Draft, value: Value) -> Value:
    """One channel, broadcast over all."""
    gate = mix(draft, value, 1, 3)
    return draft.line(f"{value.name} * {gate.name}.sigmoid()", value.shape)


@construct()
def channel_mean_gate(draft: Draft, value: Value) -> Value:
    """A statistic over the channels: they can no longer be split."""
    forms = ("{0} * {0}.mean(1, keepdim=True)", "{0} - {0}.amax(1, keepdim=True)", "{0} * {0}.softmax(1)")
    return draft.line(draft.pick(forms).format(value.name), value.shape)


@construct(images)
def gate_over_positions(draft: Draft, value: Value) -> Value:
    """A softmax over positions keeps the channels apart."""
    expression = f"{value.name} * {value.name}.flatten(2).softmax(-1).view_as({value.name})"
    return draft.line(expression, value.shape)
