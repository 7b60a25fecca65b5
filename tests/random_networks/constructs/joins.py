"""Constructs that join several values: residual streams, concatenations, sums and products."""

from __future__ import annotations

from random_networks.constructs.mixing import mix
from random_networks.constructs.table import both, construct, maps
from random_networks.draft import Draft, Value


def _branch(draft: Draft, value: Value, width: int) -> Value:
    """A small block that keeps the positions."""
    hidden = mix(draft, value, draft.width(), 3)
    return mix(draft, draft.line(f"{hidden.name}.relu()", hidden.shape), width, 3)


@construct()
def residual(draft: Draft, value: Value) -> Value:
    """With the identity."""
    return draft.line(f"{value.name} + {_branch(draft, value, value.channels).name}", value.shape)


@construct()
def projected_residual(draft: Draft, value: Value) -> Value:
    width = draft.width()
    branch, shortcut = _branch(draft, value, width), mix(draft, value, width)
    return draft.line(f"F.relu({branch.name} + {shortcut.name})", branch.shape)


def _has_input_of_its_positions(draft: Draft, value: Value) -> bool:
    return any(source.space == value.space for source in draft.inputs)


@construct(_has_input_of_its_positions)
def residual_to_input(draft: Draft, value: Value) -> Value:
    source = draft.pick([source for source in draft.inputs if source.space == value.space])
    branch = mix(draft, value, source.channels)
    return draft.line(f"{branch.name} + {source.name}", branch.shape)


@construct(lambda draft, value: value.channels <= 5)
def zero_padded_shortcut(draft: Draft, value: Value) -> Value:
    """The shortcut's missing channels are zeros, at the end or on both sides."""
    before = draft.pick((0, 1))
    width = value.channels + before + draft.pick((1, 2))
    branch = mix(draft, value, width, 3)
    amounts = ", ".join(map(str, (*([0] * (2 * value.rank)), before, width - value.channels - before)))
    return draft.line(f"{branch.name} + F.pad({value.name}, ({amounts}))", branch.shape)


@construct(lambda draft, value: bool(draft.alike(value)))
def combine(draft: Draft, value: Value) -> Value:
    """Position by position with an earlier value of the same shape."""
    other = draft.pick(draft.alike(value))
    forms = (
        "{0} + {1}",
        "{0} * {1}",
        "torch.maximum({0}, {1})",
        "{0} - {1} / 2",
        "torch.stack([{0}, {1}]).sum(0)",
        "torch.stack([{0}, {1}], 1).amax(1)",
        "torch.lerp({0}, {1}, 0.3)",
        "torch.addcmul({0}, {1}, {1})",
        "torch.add({0}, {1}, alpha=2)",
    )
    return draft.line(draft.pick(forms).format(value.name, other.name), value.shape)


def _narrow(draft: Draft, value: Value) -> bool:
    return value.channels <= 6


@construct(_narrow)
def cat_with_itself(draft: Draft, value: Value) -> Value:
    expression = f"torch.cat([{value.name}, {value.name}], 1)"
    return draft.line(expression, (2 * value.channels, *value.space))


@construct(both(_narrow, lambda draft, value: bool(draft.alike(value, channels=False))))
def cat_with_earlier(draft: Draft, value: Value) -> Value:
    """With an earlier value or an input, at either side."""
    other = draft.pick(draft.alike(value, channels=False))
    pair = draft.pick(((value, other), (other, value)))
    names = ", ".join(part.name for part in pair)
    return draft.line(f"torch.cat(({names}), dim=1)", (value.channels + other.channels, *value.space))


@construct(_narrow)
def dense(draft: Draft, value: Value) -> Value:
    """Each layer reads all that came before it."""
    grown = value
    for _ in range(2):
        added = mix(draft, grown, 2, 3)
        grown = draft.line(
            f"torch.cat([{grown.name}, {added.name}.relu()], 1)", (grown.channels + 2, *value.space)
        )
    return grown


@construct()
def inception(draft: Draft, value: Value) -> Value:
    """Nested concatenation of branches."""
    first, second, third = (mix(draft, value, width, 3) for width in (2, 3, 2))
    expression = f"torch.cat([{first.name}, torch.cat([{second.name}, {third.name}], 1)], 1)"
    return draft.line(expression, (7, *value.space))


@construct(maps)
def joined_along_positions(draft: Draft, value: Value) -> Value:
    """Two values of the same channels side by side: their channels are one."""
    other = mix(draft, value, value.channels, 3)
    joined = draft.line(f"torch.cat([{value.name}, {other.name}], -1)", value.shape)
    half = f"{joined.name}[..., : {value.space[-1]}] + {joined.name}[..., {value.space[-1]} :]"
    return draft.line(half, value.shape)
