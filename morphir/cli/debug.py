"""``morphir debug``: a shell over the history of a run, or of a model that it rewrites."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from morphir.cli.models import ModelSpec
from morphir.cli.options import Channels, Classes, ImageSize, Width
from morphir.cli.runs import has_history, is_run, read_run, seed_network
from morphir.cli.shell import Shell
from morphir.data import eval_loader
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.runtime.history.forward import Inputs
from morphir.runtime.history.origin import Resolve
from morphir.runtime.history.session import Session


def command(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A run directory, a history, or a model as --model takes it.",
            show_default=False,
        ),
    ],
    script: Annotated[
        Path | None, typer.Option(help="Read commands from this file.", show_default=False)
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(help="Keep the history of a model here; a new folder.", show_default=False),
    ] = None,
    width: Width = None,
    channels: Channels = 3,
    classes: Classes = 10,
    image_size: ImageSize = None,
) -> None:
    """Walk through every rewrite of a run, or of a model that you rewrite: step, compare, explain, bisect.

    Commands come from the terminal, with completion; from --script; or from standard input. The exit code is
    1 if a command of a script failed.

    \b
    morphir debug runs/demo
    morphir debug vgg19 --width 4 --script steps.txt
    echo 'bisect verifier' | morphir debug runs/demo
    """  # noqa: D301
    with ExitStack() as stack:
        if has_history(subject):
            if history is not None:
                raise MorphirError(
                    "--history is for models", hint="a run has a history of its own; leave it out"
                )
            session = Session.open(subject, resolve=_resolver(subject))
        else:
            folder = history or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "history"
            spec = ModelSpec.of(
                subject, width=width, channels=channels, classes=classes, image_size=image_size
            ).absolute()
            session = Session.of_graph(spec.trace().eval(), folder, spec.model_dump(mode="json"))
        shell = Shell(session, _data(subject, session))
        _work(shell, script)


def resolve_model(spec: Mapping[str, Any]) -> Graph:
    """Makes a graph of what a history or a reproducer says of its model.

    Raises:
        MorphirError: if the model cannot be made any more.
    """
    try:
        return ModelSpec.model_validate(spec).trace()
    except ValidationError as error:
        raise MorphirError(f"the model's name is damaged: {error}") from error


def _resolver(subject: str) -> Resolve:
    """A run knows what its model was, and where its file lies by now; a history its name alone."""
    return (lambda _: seed_network(Path(subject))) if is_run(subject) else resolve_model


def _data(subject: str, session: Session) -> Callable[[], Inputs] | None:
    if not is_run(subject):
        return None
    spec = read_run(Path(subject)).data

    def load() -> Inputs:
        images, _ = next(iter(eval_loader(spec.load(), device=session.graph.device)))
        return (images,), {}

    return load


def _work(shell: Shell, script: Path | None) -> None:
    if script is None and sys.stdin.isatty():
        _talk(shell)
        return
    for line in _lines(script):
        typer.echo(f"{shell.prompt}{line}")
        if shell.onecmd(line):
            break
    if shell.failures:
        raise typer.Exit(1)


def _talk(shell: Shell) -> None:
    """Reads commands from a terminal; Ctrl-C drops the line that is typed, and ends no session."""
    shell.do_where("")
    intro: str | None = shell.intro
    while True:
        try:
            shell.cmdloop(intro)
        except KeyboardInterrupt:
            typer.echo("")
            intro = ""
        else:
            return


def _lines(script: Path | None) -> Iterable[str]:
    if script is None:
        return (line.rstrip("\n") for line in sys.stdin)
    try:
        return script.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MorphirError(f"cannot read {script}: {error.strerror}") from error
