"""Tables as Markdown, and errors as their cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def markdown(columns: Mapping[str, str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table.

    Args:
        columns: Each heading to how its cells are formatted, as in ``".1f"``; words where it is empty.
        rows: The cells; None leaves one empty.
    """
    marks = ["---:" if how else "---" for how in columns.values()]
    lines = [list(columns), marks]
    lines += [[_cell(cell, how) for cell, how in zip(row, columns.values(), strict=True)] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def described(error: Exception) -> str:
    """Returns an error's type and first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _cell(cell: object, how: str) -> str:
    return "" if cell is None else format(cell, how)
