"""Tables of what repeats thousands of times (names, messages, lines of IR), so that it is held once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

_Row = TypeVar("_Row", bound=Hashable)


class Table(Generic[_Row]):
    """Gives every distinct row a number, in the order of first appearance."""

    def __init__(self) -> None:
        self._numbers: dict[_Row, int] = {}

    def number(self, row: _Row | None) -> int:
        """Returns a row's number; -1 for None."""
        return -1 if row is None else self._numbers.setdefault(row, len(self._numbers))

    def rows(self) -> list[_Row]:
        """Returns every row, by number."""
        return list(self._numbers)
