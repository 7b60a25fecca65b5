"""Short names for local variables: a name is used again as soon as nothing reads its old value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count

from exporters.source.bodies import Statement
from exporters.source.template import Template, refs

UNREAD = "_"
"""The name of every value that nothing reads."""

_POOL = ("x", "y", "z", "u", "v", "w")
_SIZES = ("n", "m", "k")


def variable_names(
    inputs: Mapping[int, str], statements: Sequence[Statement], result: Template, reserved: set[str]
) -> dict[int, str]:
    """Returns a name for each variable.

    Args:
        inputs: Names of the function's parameters, by number.
        statements: The function's statements, in order.
        result: What it returns.
        reserved: Names that the file gives another meaning.
    """
    last_read = _last_reads(statements, result)
    names = dict(inputs)
    for at, statement in enumerate(statements):
        if statement.augmented:
            continue
        for target in statement.targets:
            if target not in last_read:
                names[target] = UNREAD
                continue
            live = {names[number] for number in names if last_read.get(number, -1) > at} | reserved
            live |= {names[other] for other in statement.targets if other in names}
            names[target] = _pick(statement, at, names, last_read, live)
    return names


def _last_reads(statements: Sequence[Statement], result: Template) -> dict[int, int]:
    last: dict[int, int] = dict.fromkeys(refs(result), len(statements))
    for at in range(len(statements) - 1, -1, -1):
        statement = statements[at]
        reads = [*refs(statement.value), *(statement.targets if statement.augmented else ())]
        for number in reads:
            last.setdefault(number, at)
    return last


def _pick(
    statement: Statement, at: int, names: dict[int, str], last_read: dict[int, int], live: set[str]
) -> str:
    dying = [names[number] for number in refs(statement.value) if last_read.get(number) == at]
    if statement.scalar:
        candidates = chain(_SIZES, _numbered(_SIZES[0]))
    elif len(statement.targets) > 1:
        candidates = chain(_POOL, _numbered(_POOL[1]))
    else:
        hint = (statement.hint,) if statement.hint else ()
        reused = sorted((name for name in dying if name not in _SIZES), key=lambda name: name not in _POOL)
        candidates = chain(reused[:1], hint, _POOL, _numbered(_POOL[1]))
    return next(name for name in candidates if name not in live)


def _numbered(stem: str) -> Iterator[str]:
    return (f"{stem}{number}" for number in count(1))
