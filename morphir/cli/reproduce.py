"""``morphir reproduce``: runs a reproducer again, and says whether it fails as it did."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from morphir.cli.debug import resolve_model
from morphir.cli.options import AsJson
from morphir.cli.output import print_json
from morphir.runtime.reproduction.reproducer import Reproducer, current_versions


def command(
    directory: Annotated[
        Path, typer.Argument(help="What --reproducer-dir wrote for one failure.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Run a failed pipeline again, on the graph as it was before.

    The exit code is 0 if it fails as it did, and 1 if it does not fail, or fails otherwise.

    \b
    morphir reproduce failures/failure-001
    """  # noqa: D301
    reproducer = Reproducer.read(directory)
    found = reproducer.run(directory, resolve_model)
    same = found is not None and found.is_same(reproducer.expected)
    if as_json:
        print_json({"found": None if found is None else asdict(found), "reproduces": same})
    else:
        typer.echo(f"expected {reproducer.expected}")
        typer.echo("found    nothing: it does not fail" if found is None else f"found    {found}")
        typer.echo("it fails as it did" if same else "it does NOT reproduce")
        for name, version in current_versions().items():
            if reproducer.versions.get(name) != version:
                typer.echo(f"{name} is {version} now, was {reproducer.versions.get(name)}")
    if not same:
        raise typer.Exit(1)
