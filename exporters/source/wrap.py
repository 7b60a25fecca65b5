"""Breaks a long line of source at its brackets, one element to a line, as the common formatters do."""

from __future__ import annotations

from collections.abc import Iterator

WIDTH = 110
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def wrap(line: str, indent: int) -> list[str]:
    """Returns the line, indented, in as many lines as keep within the width, where brackets allow it."""
    whole = " " * indent + line
    if len(whole) <= WIDTH or (span := _last_bracket(line)) is None:
        return [whole]
    start, end = span
    head, inner, tail = line[: start + 1], line[start + 1 : end], line[end:]
    lines = [" " * indent + head]
    for element in _elements(inner):
        broken = wrap(element, indent + 4)
        lines += [*broken[:-1], broken[-1] + ","]
    return [*lines, " " * indent + tail]


def _scan(text: str) -> Iterator[tuple[int, str, int]]:
    """Yields position, character and depth of all outside of string literals; brackets count as inside."""
    depth, quote = 0, ""
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[at - 1] != "\\" else quote
        elif character in "\"'":
            quote = character
        else:
            depth += character in _CLOSING
            yield at, character, depth
            depth -= character in _CLOSING.values()


def _last_bracket(text: str) -> tuple[int, int] | None:
    """Returns where the last outermost bracket with something inside opens and closes."""
    start, found = 0, None
    for at, character, depth in _scan(text):
        if depth == 1 and character in _CLOSING:
            start = at
        elif depth == 1 and character in _CLOSING.values() and at > start + 1:
            found = (start, at)
    return found


def _elements(inner: str) -> Iterator[str]:
    start = 0
    for at, character, depth in _scan(inner):
        if character == "," and depth == 0:
            yield inner[start:at].strip()
            start = at + 1
    if inner[start:].strip():
        yield inner[start:].strip()
