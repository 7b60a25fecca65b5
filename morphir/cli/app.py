"""The typer application: the table of commands, and how errors leave it.

An error that the user can mend is printed once, as ``error: ...`` on standard error, with exit code 1;
Ctrl-C ends with 130. ``--debug`` shows tracebacks instead.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from exporters.source.text import morphir_version
from morphir.cli import debug, export, fidelity, grow, inspection, report, reproduce, verify
from morphir.cli.instruments import InspectableCommand, inspectable
from morphir.errors import MorphirError

INTERRUPTED = 130


class _ErrorPrintingGroup(TyperGroup):
    """Turns errors that the user can mend into one message."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except MorphirError as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            if ctx.params.get("debug"):
                raise
            notes = getattr(error, "__notes__", [])
            typer.echo("\n".join(["interrupted", *notes]), err=True)
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=_ErrorPrintingGroup,
    help="Grow convolutional networks the way a compiler rewrites programs.",
    epilog="Start with: morphir grow --model vgg19 --width 8 --data digits --preset demo --out runs/first",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("grow", cls=InspectableCommand)(inspectable(grow.command))
app.command("inspect")(inspection.command)
app.command("export")(export.command)
app.command("fidelity", cls=InspectableCommand)(inspectable(fidelity.command))
app.command("report")(report.command)
app.command("verify", cls=InspectableCommand)(inspectable(verify.command))
app.command("debug", cls=InspectableCommand)(inspectable(debug.command))
app.command("reproduce", cls=InspectableCommand)(inspectable(reproduce.command))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"morphir {morphir_version()}")
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    del version, debug
