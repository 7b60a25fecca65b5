"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Subject = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|RUN",
        help="vgg19, mobilenetv1, resnet20, torchvision:NAME, path/to/file.py:factory, or a run directory.",
        show_default=False,
    ),
]
Width = Annotated[
    int | None, typer.Option(help="Channels per layer; the model's own if left out.", show_default=False)
]
Channels = Annotated[int, typer.Option(help="Channels of the images.")]
Classes = Annotated[int, typer.Option(help="Number of classes.")]
ImageSize = Annotated[
    int | None, typer.Option(help="Side of the images; 32, or 224 for torchvision's.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; torch's default if left out.", min=1)]
