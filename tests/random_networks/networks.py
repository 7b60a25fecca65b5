"""The strategy: networks of up to thirty operators, composed from the table of constructs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from random_networks.constructs import channelwise, joins, mixing, movement, vectors
from random_networks.constructs.table import CONSTRUCTS
from random_networks.draft import Draft, Network, Value

REGISTERED = (channelwise, joins, mixing, movement, vectors)
MOST_LINES = 26
MOST_NUMBERS = 12 * 64
"""Of one sample of one value; larger ones are reduced before anything reads them."""

_SIZES = {1: (6, 8, 5), 2: (4, 6, 5, 8), 3: (4, 3)}


@st.composite
def networks(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Network:
    """Draws a stem, some constructs on its map, a head that makes vectors of it, and some on these."""
    draft = Draft(draw)
    rank = draft.pick((2, 2, 2, 2, 1, 3))
    size = draft.pick(_SIZES[rank])
    value = draft.input(draft.pick((3, 2, 4)), *([size] * rank))
    if draft.pick((False, False, False, False, True)):
        draft.input(draft.pick((3, 4)), *([size] * rank))
    if draft.pick((True, True, True, False)):
        value = mixing.mix(draft, value, draft.width(), 3)
    for _ in range(draft.pick((1, 2, 3, 4, 5, 6, 8))):
        value = _extended(draft, value)
    outputs = [_auxiliary(draft, value)] if draft.pick((False, False, False, True)) else []
    headed = draft.pick((True, True, True, False))
    value = _headed(draft, value) if headed else mixing.mix(draft, value, 3)
    return draft.finish(_returned(draft, [value, *outputs]))


def _extended(draft: Draft, value: Value) -> Value:
    """Appends one construct, and a layer that narrows its result where that is large."""
    if len(draft.forward) >= MOST_LINES:
        return value
    draft.values.append(value)
    fitting = [name for name, construct in CONSTRUCTS.items() if construct.fits(draft, value)]
    name = draft.pick(fitting)
    draft.constructs.append(name)
    made = CONSTRUCTS[name].build(draft, value)
    if made.channels > 8 or made.channels * made.positions > MOST_NUMBERS:
        return mixing.mix(draft, made, 4)
    return made


def _headed(draft: Draft, value: Value) -> Value:
    name = draft.pick(tuple(vectors.TO_VECTORS))
    draft.constructs.append(name)
    value = vectors.TO_VECTORS[name](draft, value)
    if value.channels > 8:
        value = mixing.mix(draft, value, draft.width())
    for _ in range(draft.pick((0, 1, 2, 3))):
        value = _extended(draft, value)
    return mixing.mix(draft, value, 3)


def _auxiliary(draft: Draft, value: Value) -> Value:
    """A second output: a map as it is, or a head of its own."""
    draft.constructs.append("auxiliary_output")
    if draft.pick((True, False)):
        return mixing.mix(draft, vectors.pooled(draft, value), 2)
    return value


def _returned(draft: Draft, outputs: list[Value]) -> str:
    names = [value.name for value in outputs]
    if len(names) > 1 and draft.pick((True, False)):
        return ", ".join(names)
    if draft.pick((False, False, True)) or len(names) > 1:
        return "{" + ", ".join(f'"out{at}": {name}' for at, name in enumerate(names)) + "}"
    return names[0]
