"""Constructs that move channels: cuts, permutations, views, shuffles."""

from __future__ import annotations

from random_networks.constructs.mixing import mix
from random_networks.constructs.table import both, construct, dims, even, images, maps, several
from random_networks.draft import Draft, Value


def _halves(draft: Draft, value: Value) -> list[Value]:
    half = (value.channels // 2, *value.space)
    forms = ("{}.chunk(2, 1)", "torch.chunk({}, 2, dim=1)", "torch.tensor_split({}, 2, dim=1)")
    return draft.lines(draft.pick(forms).format(value.name), half, half)


@construct(even)
def chunk(draft: Draft, value: Value) -> Value:
    """Into layers of their own; or swapped, or gating each other."""
    first, second = _halves(draft, value)
    if draft.pick((True, False)):
        width = draft.width()
        pair = mix(draft, first, width), mix(draft, second, width, 3)
        return draft.line(f"{pair[0].name} + {pair[1].name}", pair[0].shape)
    forms = (
        ("{0} * {1}.sigmoid()", value.channels // 2),
        ("torch.maximum({0}, {1})", value.channels // 2),
        ("torch.cat([{1}, {0}], 1)", value.channels),
        ("torch.cat([{0}, {1}.relu()], 1)", value.channels),
    )
    form, width = draft.pick(forms)
    return draft.line(form.format(first.name, second.name), (width, *value.space))


@construct(even)
def glu(draft: Draft, value: Value) -> Value:
    return draft.line(f"F.glu({value.name}, 1)", (value.channels // 2, *value.space))


@construct(lambda draft, value: value.channels > 2)
def split(draft: Draft, value: Value) -> Value:
    """Into pieces of given sizes, put together in another order."""
    sizes = (1, value.channels - 2, 1)
    first, middle, last = draft.lines(
        f"{value.name}.split([{', '.join(map(str, sizes))}], dim=1)",
        *((size, *value.space) for size in sizes),
    )
    if draft.pick((True, False)):
        expression = f"torch.cat([{middle.name}, {last.name}, {first.name}.tanh()], 1)"
        return draft.line(expression, value.shape)
    width = draft.width()
    pair = mix(draft, middle, width, 3), mix(draft, last, width)
    return draft.line(f"{pair[0].name} * {pair[1].name} + {first.name}", pair[0].shape)


@construct(several)
def slices(draft: Draft, value: Value) -> Value:
    """Two slices that lie apart, touch or overlap, each into a layer of its own."""
    own, width = value.channels, draft.width()
    stop, start = draft.pick(range(1, own + 1)), draft.pick(range(own))
    first = draft.line(f"{value.name}[:, :{stop}]", (stop, *value.space))
    second = draft.line(f"{value.name}[:, {start}:]", (own - start, *value.space))
    pair = mix(draft, first, width), mix(draft, second, width, 3)
    return draft.line(f"{pair[0].name} + {pair[1].name}", pair[0].shape)


@construct(several)
def narrowed(draft: Draft, value: Value) -> Value:
    """Some of the channels are read no more."""
    half = value.channels // 2
    forms = (
        (f"{value.name}[:, :{half}]", half),
        (f"{value.name}[:, -{half}:]", half),
        (f"{value.name}[:, 1:]", value.channels - 1),
        (f"{value.name}.narrow(1, 0, {half})", half),
        (f"{value.name}[:, ::2]", -(-value.channels // 2)),
        (f"{value.name}[:, [0, {value.channels - 1}]]", 2),
        (f"{value.name}[:, 0:1]", 1),
        (f"{value.name}[:, {value.channels - 1}].unsqueeze(1)", 1),
    )
    expression, width = draft.pick(forms)
    return draft.line(expression, (width, *value.space))


@construct(several)
def flip(draft: Draft, value: Value) -> Value:
    forms = ("torch.flip({0}, [1])", "{0} + {0}.flip(1)", "torch.cat([{0}.flip(1), {0}], 1)")
    form = draft.pick(forms[: 3 if value.channels <= 4 else 2])
    width = value.channels * (2 if "cat" in form else 1)
    return draft.line(form.format(value.name), (width, *value.space))


@construct(several)
def index_select(draft: Draft, value: Value) -> Value:
    """By a buffer of indices: a permutation, or one that drops and repeats channels."""
    own = value.channels
    order = draft.pick(((*range(1, own), 0), (own - 1, 0, 0)))
    name = f"order{len(draft.init)}"
    draft.init.append(f'self.register_buffer("{name}", torch.tensor({list(order)}))')
    forms = (f"{value.name}.index_select(1, self.{name})", f"{value.name}[:, self.{name}]")
    return draft.line(draft.pick(forms), (len(order), *value.space))


@construct(several)
def roll(draft: Draft, value: Value) -> Value:
    return draft.line(f"torch.roll({value.name}, 1, 1)", value.shape)


@construct(lambda draft, value: value.channels <= 5)
def repeat(draft: Draft, value: Value) -> Value:
    forms = (f"{value.name}.repeat(1, 2{', 1' * value.rank})", f"{value.name}.repeat_interleave(2, 1)")
    return draft.line(draft.pick(forms), (2 * value.channels, *value.space))


@construct(lambda draft, value: value.channels <= 5)
def channel_pad(draft: Draft, value: Value) -> Value:
    amounts = ", ".join(map(str, (*([0] * (2 * value.rank)), draft.pick((0, 1)), 1)))
    width = value.channels + (1 if amounts.split(", ")[-2] == "0" else 2)
    return draft.line(f"F.pad({value.name}, ({amounts}))", (width, *value.space))


@construct(both(maps, even))
def shuffle(draft: Draft, value: Value) -> Value:
    """A channel shuffle: by view with literal or computed sizes, by module."""
    own, groups, name = value.channels, 2, value.name
    module = draft.part("shuffle", f"nn.ChannelShuffle({groups})") if value.rank == 2 else None
    forms = [
        f"{name}.view(-1, {groups}, {own // groups}{dims(value)}).transpose(1, 2)"
        f".reshape(-1, {own}{dims(value)})",
        f"{name}.view({name}.size(0), {groups}, {name}.size(1) // {groups}{dims(value)})"
        f".transpose(1, 2).reshape({name}.size(0), -1{dims(value)})",
        f"{name}.unflatten(1, ({groups}, -1)).transpose(1, 2).flatten(1, 2)",
        f"{name}.reshape({name}.shape[0], {own // groups}, {groups}{dims(value)}).transpose(1, 2)"
        f".reshape({name}.shape)",
    ]
    return draft.line(draft.pick([*forms, *([f"{module}({name})"] if module else [])]), value.shape)


@construct(both(images, lambda draft, value: value.channels % 4 == 0 and max(value.space) <= 4))
def pixel_shuffle(draft: Draft, value: Value) -> Value:
    h, w = value.space
    own, name = value.channels // 4, value.name
    forms = (
        f"F.pixel_shuffle({name}, 2)",
        f"{name}.view(-1, {own}, 2, 2, {h}, {w}).permute(0, 1, 4, 2, 5, 3)"
        f".reshape(-1, {own}, {2 * h}, {2 * w})",
    )
    return draft.line(draft.pick(forms), (own, 2 * h, 2 * w))


@construct(both(images, lambda d, v: v.channels <= 3 and all(e % 2 == 0 for e in v.space)))
def pixel_unshuffle(draft: Draft, value: Value) -> Value:
    h, w = value.space
    return draft.line(f"F.pixel_unshuffle({value.name}, 2)", (4 * value.channels, h // 2, w // 2))


@construct(even)
def grouped_view(draft: Draft, value: Value) -> Value:
    """Channels as a grid of groups: maxout, sums over groups, unbound groups."""
    own, name = value.channels // 2, value.name
    inner = draft.pick((f"{own}, 2", f"2, {own}"))
    dim = 2 if inner.endswith(" 2") else 1
    viewed = f"{name}.view(-1, {inner}{dims(value)})"
    forms = (f"{viewed}.amax({dim})", f"{viewed}.sum({dim})", "{0} * {1}", "{0} + {1}.relu()")
    form = draft.pick(forms)
    if "{0}" not in form:
        return draft.line(form, (own, *value.space))
    first, second = draft.lines(f"{viewed}.unbind({dim})", (own, *value.space), (own, *value.space))
    return draft.line(form.format(first.name, second.name), (own, *value.space))


@construct(maps)
def literal_view(draft: Draft, value: Value) -> Value:
    """Views that come back, with literal sizes."""
    own, name = value.channels, value.name
    forms = (
        f"{name}.view(-1, {own}, {value.positions}).tanh().view(-1, {own}{dims(value)})",
        f"{name}.reshape(-1, {own * value.positions}).tanh().reshape(-1, {own}{dims(value)})",
        f"{name}.flatten(1).relu().view({name}.shape[0], {own}{dims(value)})",
        f"{name}.permute(0, *range(2, {value.rank + 2}), 1).reshape(-1, {own}).relu()"
        f".view({name}.shape[0]{dims(value)}, {own}).movedim(-1, 1).contiguous()",
        f"{name}.transpose(1, -1).relu().transpose(1, -1).contiguous()",
        f"{name}.flatten(2).unflatten(2, ({dims(value)[2:]},)).clone()",
    )
    return draft.line(draft.pick(forms), value.shape)


@construct(both(images, lambda d, v: v.channels <= 2 and max(v.space) <= 4))
def unfold(draft: Draft, value: Value) -> Value:
    h, w = value.space
    expression = f"F.unfold({value.name}, 3, padding=1).view(-1, {9 * value.channels}, {h}, {w})"
    return draft.line(expression, (9 * value.channels, h, w))


@construct(both(images, lambda d, v: v.space[0] != 1 and v.channels <= 6))
def attention(draft: Draft, value: Value) -> Value:
    """Over positions, by module or by hand; back to a map."""
    own, name, (h, w) = value.channels, value.name, value.space
    tokens = draft.line(f"{name}.flatten(2).transpose(1, 2)", (h * w, own))
    if own % 2 == 0 and draft.pick((True, False)):
        layer = draft.part("attention", f"nn.MultiheadAttention({own}, 2, batch_first=True)")
        mixed = f"{layer}({tokens.name}, {tokens.name}, {tokens.name}, need_weights=False)[0]"
    else:
        inner = draft.width()
        query, key, val = (draft.part("linear", f"nn.Linear({own}, {inner})") for _ in range(3))
        last = draft.part("linear", f"nn.Linear({inner}, {own})")
        scores = f"({query}({tokens.name}) @ {key}({tokens.name}).transpose(1, 2)).softmax(-1)"
        forms = (
            f"{scores} @ {val}({tokens.name})",
            f"F.scaled_dot_product_attention({query}({tokens.name}), {key}({tokens.name}), "
            f"{val}({tokens.name}))",
        )
        mixed = f"{last}({draft.pick(forms)})"
    return draft.line(f"{name} + {mixed}.transpose(1, 2).unflatten(2, ({h}, {w})).contiguous()", value.shape)
