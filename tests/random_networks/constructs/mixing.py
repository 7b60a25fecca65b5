"""Constructs that mix channels: convolutions of all kinds, linear layers, products with bare parameters."""

from __future__ import annotations

from random_networks.constructs.table import both, construct, images, maps
from random_networks.draft import Draft, Value


def mix(draft: Draft, value: Value, width: int, kernel: int = 1) -> Value:
    """A plain mixing layer of a given width: a convolution that keeps the positions, or a linear layer."""
    if not value.rank:
        layer = draft.part("linear", f"nn.Linear({value.channels}, {width})")
    else:
        padding = f", padding={kernel // 2}" if kernel > 1 else ""
        layer = draft.part("conv", f"nn.Conv{value.rank}d({value.channels}, {width}, {kernel}{padding})")
    return draft.line(f"{layer}({value.name})", (width, *value.space))


def divisors(*counts: int) -> list[int]:
    """Returns the common divisors of channel counts."""
    return [d for d in range(1, min(counts) + 1) if all(count % d == 0 for count in counts)]


@construct()
def plain(draft: Draft, value: Value) -> Value:
    return mix(draft, value, draft.width(), draft.pick((3, 1)))


@construct(maps)
def convolution(draft: Draft, value: Value) -> Value:
    """Strided, dilated, grouped, with or without bias, in other padding modes."""
    width, kernel = draft.width(), draft.pick((3, 1, 2))
    groups = draft.pick(divisors(value.channels, width))
    dilation = draft.pick((1, 2)) if kernel == 3 else 1
    stride = draft.pick((1, 2)) if min(value.space) >= 4 else 1
    padding = dilation * (kernel // 2)
    modes = ("zeros", "zeros", "circular", "replicate") if min(value.space) > padding else ("zeros",)
    space = [(extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for extent in value.space]
    options = (
        f"stride={stride}, padding={padding}, dilation={dilation}, groups={groups}, "
        f"bias={draft.pick((True, False))}, padding_mode={draft.pick(modes)!r}"
    )
    layer = draft.part("conv", f"nn.Conv{value.rank}d({value.channels}, {width}, {kernel}, {options})")
    return draft.line(f"{layer}({value.name})", (width, *space))


@construct(both(maps, lambda draft, value: value.channels <= 6))
def depthwise(draft: Draft, value: Value) -> Value:
    """With a channel multiplier."""
    width = value.channels * draft.pick((1, 2))
    layer = draft.part(
        "depthwise", f"nn.Conv{value.rank}d({value.channels}, {width}, 3, padding=1, groups={value.channels})"
    )
    return draft.line(f"{layer}({value.name})", (width, *value.space))


@construct(both(maps, lambda draft, value: max(value.space) <= 4))
def transposed(draft: Draft, value: Value) -> Value:
    """Dense, grouped, depthwise."""
    width = draft.width()
    groups = draft.pick(divisors(value.channels, width))
    layer = draft.part(
        "up", f"nn.ConvTranspose{value.rank}d({value.channels}, {width}, 2, stride=2, groups={groups})"
    )
    return draft.line(f"{layer}({value.name})", (width, *(2 * extent for extent in value.space)))


@construct(maps)
def functional(draft: Draft, value: Value) -> Value:
    """A convolution by functional call, of bare parameters."""
    width = draft.width()
    groups = draft.pick(divisors(value.channels, width))
    kernel = draft.parameter(width, value.channels // groups, *([3] * value.rank))
    bias = draft.pick((f", {draft.parameter(width)}", ""))
    return draft.line(
        f"F.conv{value.rank}d({value.name}, {kernel}{bias}, padding=1, groups={groups})",
        (width, *value.space),
    )


@construct(images)
def einsum(draft: Draft, value: Value) -> Value:
    width = draft.width()
    kernel = draft.parameter(width, value.channels)
    return draft.line(
        f'torch.einsum("nchw,dc->ndhw", {value.name}, {kernel}).contiguous()', (width, *value.space)
    )


@construct(images)
def product(draft: Draft, value: Value) -> Value:
    """A bare parameter times flattened positions."""
    width = draft.width()
    kernel, (h, w) = draft.parameter(width, value.channels), value.space
    expression = f"({kernel} @ {value.name}.flatten(2)).unflatten(2, ({h}, {w}))"
    return draft.line(expression, (width, *value.space))


@construct(maps)
def linear_channels_last(draft: Draft, value: Value) -> Value:
    width = draft.width()
    layer = draft.part("linear", f"nn.Linear({value.channels}, {width})")
    expression = f"{layer}({value.name}.movedim(1, -1)).movedim(-1, 1).contiguous()"
    return draft.line(expression, (width, *value.space))


def square(draft: Draft, value: Value) -> str:
    """Adds a module that keeps the number of channels."""
    if not value.rank:
        return draft.part("linear", f"nn.Linear({value.channels}, {value.channels})")
    return draft.part("conv", f"nn.Conv{value.rank}d({value.channels}, {value.channels}, 3, padding=1)")


@construct()
def called_twice(draft: Draft, value: Value) -> Value:
    """One module after itself."""
    layer = square(draft, value)
    return draft.line(f"{layer}({layer}({value.name}).relu())", value.shape)


@construct(lambda draft, value: bool(draft.alike(value)))
def shared_head(draft: Draft, value: Value) -> Value:
    """One module on two values."""
    other = draft.pick(draft.alike(value))
    layer = square(draft, value)
    return draft.line(f"{layer}({value.name}) + {layer}({other.name})", value.shape)


@construct()
def tied(draft: Draft, value: Value) -> Value:
    """Two modules of one kernel, one after the other or side by side."""
    first, second = square(draft, value), square(draft, value)
    draft.init.append(f"{second}.weight = {first}.weight")
    forms = (f"{first}({value.name}) * {second}({value.name})", f"{second}({first}({value.name}).relu())")
    return draft.line(draft.pick(forms), value.shape)


@construct()
def frozen(draft: Draft, value: Value) -> Value:
    """Parameters that require no gradients."""
    layer = square(draft, value)
    draft.init.append(f"{layer}.requires_grad_(False)")
    return draft.line(f"{layer}({value.name})", value.shape)
