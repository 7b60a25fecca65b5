"""From maps to vectors, and blocks of vectors."""

from __future__ import annotations

from random_networks.constructs.mixing import mix
from random_networks.constructs.table import Build, construct, vectors
from random_networks.draft import Draft, Value


def pooled(draft: Draft, value: Value) -> Value:
    """One number for each channel."""
    around = tuple(range(2, value.rank + 2))
    forms = (
        f"{value.name}.mean({around})",
        f"{value.name}.amax({around})",
        f"F.adaptive_avg_pool{value.rank}d({value.name}, 1).flatten(1)",
        f"{value.name}.flatten(2).sum(-1)",
    )
    return draft.line(draft.pick(forms), (value.channels,))


def flattened(draft: Draft, value: Value) -> Value:
    """Every position of every channel, channels first or last."""
    count = value.channels * value.positions
    forms = (
        f"{value.name}.flatten(1)",
        f"torch.flatten({value.name}.movedim(1, -1), 1)",
        f"{value.name}.view(-1, {count})",
        f"{value.name}.reshape({value.name}.size(0), -1)",
        f"{value.name}.movedim(1, -1).reshape(-1, {count})",
    )
    return draft.line(draft.pick(forms), (count,))


def flattened_branches(draft: Draft, value: Value) -> Value:
    """Two branches, flattened and then joined."""
    first, second = flattened(draft, value), flattened(draft, mix(draft, value, 3, 3))
    expression = f"torch.cat([{first.name}, {second.name}], 1)"
    return draft.line(expression, (first.channels + second.channels,))


def gram(draft: Draft, value: Value) -> Value:
    """Products of channels with each other."""
    flat = draft.line(f"{value.name}.flatten(2)", (value.channels, value.positions))
    forms = ("({0} @ {0}.transpose(1, 2)).flatten(1)", 'torch.einsum("nci,ndi->ncd", {0}, {0}).flatten(1)')
    return draft.line(draft.pick(forms).format(flat.name), (value.channels**2,))


TO_VECTORS: dict[str, Build] = {
    build.__name__: build for build in (pooled, flattened, flattened_branches, gram)
}


@construct(vectors)
def perceptron(draft: Draft, value: Value) -> Value:
    """A hidden layer with a residual connection."""
    hidden = mix(draft, value, draft.width())
    back = mix(draft, draft.line(f"F.gelu({hidden.name})", hidden.shape), value.channels)
    return draft.line(f"{value.name} + {back.name}", value.shape)
