"""``morphir export``: a run's grown network, or a fresh model, as PyTorch source or ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exporters.registry import EXPORTERS
from morphir.cli.options import Channels, Classes, ImageSize, Subject, Target, Width
from morphir.cli.runs import is_run, load_subject
from morphir.errors import MorphirError


def command(
    subject: Subject,
    to: Target,
    out: Annotated[
        Path | None, typer.Option(help="File to write; RUN/network.* or ./network.* if left out.")
    ] = None,
    width: Width = None,
    channels: Channels = 3,
    classes: Classes = 10,
    image_size: ImageSize = None,
) -> None:
    """Export a network, and verify what was written.

    A run directory gives its network as the newest checkpoint has it, finished or not.

    \b
    morphir export runs/demo --to onnx
    morphir export runs/demo --to pytorch --out grown.py
    morphir export torchvision:resnet18 --to onnx --out resnet18.onnx
    """  # noqa: D301
    exporter = EXPORTERS.get(to)
    if exporter is None:
        raise MorphirError(f"there is no exporter {to!r}", hint=f"there are: {', '.join(EXPORTERS)}")
    graph = load_subject(subject, width=width, channels=channels, classes=classes, image_size=image_size)
    folder = Path(subject) if is_run(subject) else Path()
    path = out or folder / f"network{exporter.suffix}"
    exporter.export(graph.eval(), path)
    typer.echo(f"wrote {path}, verified")
