"""Options that every command which runs passes has: print, verify, time, dump, stop.

What they print goes to standard error, so that a command's own output stays what it is. Where a value may be
left out, it takes ``=``: ``--print-ir-after=split-channels``; the option alone means all.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from morphir.cli.models import ModelSpec
from morphir.cli.runs import has_history, is_run, read_run
from morphir.errors import MorphirError
from morphir.runtime.history.preserving import VerifyOutputs
from morphir.runtime.reproduction.writing import WriteReproducer
from passes.instruments import Instrument, PipelineStopped, instrumented
from passes.instruments.breaking import BreakOn
from passes.instruments.observing import NameUnmet, PrintRemarks, TimePasses, VerifyEach
from passes.instruments.printing import ALL, DumpIR, PrintIR
from passes.instruments.stopping import StopAfterRewrite

Model = Callable[[], Mapping[str, Any] | None]
_PANEL = "Inspection of passes"
_ALL = "all"
_REMARKS = ("applied", "missed", "refused")


def _option(help_text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help_text, metavar=metavar, show_default=False, rich_help_panel=_PANEL)


_OPTIONS: dict[str, tuple[Any, Any]] = {
    "print_ir_before": (
        Annotated[
            list[str] | None, _option("Print the IR before each pass, or this one.", metavar="[=PASS]")
        ],
        None,
    ),
    "print_ir_after": (
        Annotated[list[str] | None, _option("Print the IR after each pass, or this one.", metavar="[=PASS]")],
        None,
    ),
    "print_changed": (
        Annotated[bool, _option("Print the IR after each pass that changed it.", "--print-changed")],
        False,
    ),
    "print_diff": (Annotated[bool, _option("Print what each pass changed.", "--print-diff")], False),
    "verify_each": (
        Annotated[bool, _option("Run the whole verifier after each pass.", "--verify-each")],
        False,
    ),
    "time_passes": (Annotated[bool, _option("Print the time of each pass.", "--time-passes")], False),
    "break_on": (
        Annotated[
            list[str] | None,
            _option(
                "Stop in a debugger before pass, rewrite, space or node, each or =NAME; may be given again.",
                metavar="KIND[=NAME]",
            ),
        ],
        None,
    ),
    "stop_after_rewrite": (
        Annotated[
            int | None,
            typer.Option(
                help="Stop once the rewrite of this number is applied.",
                metavar="NUMBER",
                min=1,
                show_default=False,
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "verify_outputs": (
        Annotated[
            bool,
            _option(
                "Run the graph around each rewrite that must not change its outputs.", "--verify-outputs"
            ),
        ],
        False,
    ),
    "reproducer_dir": (
        Annotated[
            Path | None,
            _option("Write what fails into this folder, so that 'morphir reproduce' runs it again."),
        ],
        None,
    ),
    "remarks": (
        Annotated[
            str | None,
            _option("Print remarks: all, or some of applied,missed,refused.", metavar="[=KINDS]"),
        ],
        None,
    ),
    "dump_dir": (
        Annotated[Path | None, _option("Write the IR after each pass into files of this folder.")],
        None,
    ),
}


_OPTIONAL = ("--print-ir-before", "--print-ir-after", "--remarks")


class InspectableCommand(TyperCommand):
    """A command some of whose options may do without their value, which is ``all`` then."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the command line."""
        options = args[: args.index("--")] if "--" in args else args
        named = [f"{argument}={_ALL}" if argument in _OPTIONAL else argument for argument in options]
        return super().parse_args(ctx, [*named, *args[len(options) :]])


def inspectable(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command, which runs under the instruments that they ask for."""
    own = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        chosen = {name: kwargs.pop(name, default) for name, (_, default) in _OPTIONS.items()}
        if chosen["break_on"] and "quiet" in kwargs:
            kwargs["quiet"] = True  # progress bars and a debugger do not share a terminal
        try:
            with instrumented(*_instruments(chosen, partial(_model_of, kwargs))):
                command(*args, **kwargs)
        except PipelineStopped as stop:
            _write(str(stop))
            raise typer.Exit from stop
        _check_stopped(chosen["stop_after_rewrite"])

    signature = own.replace(parameters=[*own.parameters.values(), *added])
    vars(run)["__signature__"] = signature
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return run


def _model_of(arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the name of the model that a command is about; None where it has none that makes it again."""
    if "out" in arguments:
        return read_run(arguments["out"]).model.model_dump(mode="json") if is_run(arguments["out"]) else None
    name = arguments.get("subject")
    if name is None or has_history(name):
        return None
    sizes = {key: arguments[key] for key in ("width", "channels", "classes", "image_size")}
    return ModelSpec.of(name, **sizes).absolute().model_dump(mode="json")


def _check_stopped(number: int | None) -> None:
    """Says so where the rewrite to stop after was never made."""
    if number is not None:
        raise MorphirError(
            f"there was no rewrite {number} to stop after",
            hint="a rewrite's number is its place in its graph's history",
        )


def _instruments(chosen: dict[str, Any], model: Model) -> Iterator[Instrument]:
    before, after = chosen["print_ir_before"] or (), chosen["print_ir_after"] or ()
    if before or after or chosen["print_changed"] or chosen["print_diff"]:
        yield PrintIR(
            _passes(before), _passes(after), chosen["print_changed"], chosen["print_diff"], write=_write
        )
    if chosen["dump_dir"] is not None:
        yield DumpIR(chosen["dump_dir"])
    if chosen["verify_each"]:
        yield VerifyEach()
    if chosen["verify_outputs"]:
        yield VerifyOutputs()
    if chosen["reproducer_dir"] is not None:
        yield WriteReproducer(chosen["reproducer_dir"], model, write=_write)
    if chosen["remarks"] is not None:
        yield PrintRemarks(_kinds(chosen["remarks"]), write=_write)
    if chosen["time_passes"]:
        yield TimePasses(write=_write)
    yield from (replace(BreakOn.parse(text), write=_write) for text in chosen["break_on"] or ())
    if named := [name for name in (*before, *after) if name != _ALL]:
        yield NameUnmet(named, write=_write)
    if chosen["stop_after_rewrite"] is not None:
        yield StopAfterRewrite(chosen["stop_after_rewrite"])


def _passes(names: Sequence[str]) -> Any:
    return ALL if _ALL in names else frozenset(names)


def _kinds(text: str) -> frozenset[str]:
    kinds = _REMARKS if text == _ALL else tuple(text.split(","))
    if unknown := sorted(set(kinds) - set(_REMARKS)):
        raise MorphirError(
            f"there are no remarks {', '.join(unknown)}", hint=f"all, or some of {','.join(_REMARKS)}"
        )
    return frozenset(kinds)


def _write(text: str) -> None:
    typer.echo(text, err=True)
