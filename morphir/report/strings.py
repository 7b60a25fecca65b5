"""A table of strings: what repeats thousands of times (names, messages, lines of IR) is held once."""

from __future__ import annotations


class StringTable:
    """Gives every distinct string a number, in the order of first appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str | None) -> int:
        """Returns a string's number; -1 for None."""
        return -1 if text is None else self._numbers.setdefault(text, len(self._numbers))

    def to_json(self) -> list[str]:
        """Returns every string, by number."""
        return list(self._numbers)
