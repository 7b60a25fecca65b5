"""``morphir report``: what happened in a run, as one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from morphir.report import write_report


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, finished or not.")],
    out: Annotated[Path | None, typer.Option(help="File to write; RUN/report.html if left out.")] = None,
) -> None:
    """Make the report of a run from its directory: one HTML file that works offline.

    Which channels were split and pruned in every phase and what that was estimated to gain, sizes and errors
    over time, the program with every space's locality, IR and its changes, and all remarks. 'morphir grow'
    keeps RUN/report.html up to date while it runs.

    \b
    morphir report runs/demo
    morphir report runs/demo --out demo.html
    """  # noqa: D301
    typer.echo(f"wrote {write_report(run, out)}")
