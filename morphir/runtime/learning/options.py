"""What the learner's plain options have to be, as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Real

from morphir.errors import MorphirError
from morphir.ir.integers import whole_number


@dataclass(frozen=True)
class _Rule:
    """What holds for an option, as a test and in words."""

    holds: Callable[[object], bool]
    words: str


def _number(value: object) -> float:
    """Returns a real number; NaN, for which no comparison holds, stands for anything else."""
    if isinstance(value, bool):
        return math.nan
    return float(value) if isinstance(value, Real) else math.nan


_NOT_NEGATIVE = _Rule(lambda value: 0 <= _number(value) < math.inf, "a finite number, 0 or above")

_RULES: Mapping[str, _Rule] = {
    "lr": _NOT_NEGATIVE,
    "init_scale": _NOT_NEGATIVE,
    "ema": _Rule(lambda value: 0 < _number(value) <= 1, "a number above 0, at most 1"),
    "seed": _Rule(lambda value: whole_number(value) is not None, "a whole number"),
    "spaces": _Rule(
        lambda value: value is None or (isinstance(value, Collection) and not isinstance(value, str)),
        "a list of names of spaces, or None for all",
    ),
}


def check_options(**options: object) -> None:
    """Checks the learner's options by their names.

    Raises:
        MorphirError: for the first that is not what it has to be.
    """
    for name, value in options.items():
        if not _RULES[name].holds(value):
            raise MorphirError(f"{name} is {value!r}", hint=f"it has to be {_RULES[name].words}")
