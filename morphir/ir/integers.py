"""Whole numbers as users have them: Python's, numpy's, and tensors of one."""

from __future__ import annotations

import operator
from typing import Any


def whole_number(value: object) -> int | None:
    """Returns Python's integer for whatever counts as one; None for anything else, and for truth values."""
    if isinstance(value, bool):
        return None
    try:
        found: Any = value
        return operator.index(found)
    except TypeError:
        return None
