"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

_PIPED_WIDTH = 200
"""Columns when the output is no terminal, so that nothing is folded in a file."""


def console() -> Console:
    """Returns a console on standard output."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)


def print_json(data: Any) -> None:
    """Prints plain data as JSON."""
    typer.echo(json.dumps(data, indent=1))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table; columns whose name starts with ``>`` are numbers.

    Args:
        title: Stands above it.
        columns: Their names.
        rows: A cell for each column; None prints as ``-``.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(_cell, row))
    console().print(table, markup=False)


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


class Lines:
    """Lines on standard output, one by one, above a progress bar where somebody watches.

    Use it as a context manager, so that the bar leaves the terminal whatever happens inside.

    Args:
        unit: What the bar counts.
        total: How many there are.
        quiet: Print nothing.
    """

    def __init__(self, unit: str, total: int, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._on_terminal = sys.stdout.isatty()
        # Where the lines go to a file, the bar goes where it can still be seen.
        self._console = Console(stderr=not self._on_terminal)
        self._progress = Progress(
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            redirect_stdout=False,
            transient=True,
        )
        self._task = self._progress.add_task(unit, total=total)

    def __enter__(self) -> Lines:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, steps: int = 1) -> None:
        """Moves the bar."""
        self._progress.advance(self._task, steps)

    def line(self, text: str) -> None:
        """Prints a line."""
        if self._quiet:
            return
        if self._on_terminal:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(text)
