"""Options that several commands share, and those that list what a registry holds."""

from __future__ import annotations

from typing import Annotated

import typer

from exporters.registry import EXPORTERS
from morphir.cli.settings import DEFAULT_PRESET
from morphir.data import DATASET_NAMES
from morphir.runtime.growing.config import PRESETS
from morphir.seeds import MODEL_NAMES

_MODELS = ", ".join(MODEL_NAMES)
_DATA = typer.Option(help=f"One of {', '.join(DATASET_NAMES)}.", show_default=False)

Subject = Annotated[
    str,
    typer.Argument(metavar="MODEL|RUN", help=f"{_MODELS}, or a run directory.", show_default=False),
]
Model = Annotated[str | None, typer.Option(help=f"One of {_MODELS}.", show_default=False)]
Width = Annotated[
    int | None, typer.Option(help="Channels per layer; the model's own if left out.", show_default=False)
]
Channels = Annotated[int, typer.Option(help="Channels of the images.")]
Classes = Annotated[int, typer.Option(help="Number of classes.")]
ImageSize = Annotated[
    int | None, typer.Option(help="Side of the images; 32, or 224 for torchvision's.", show_default=False)
]

Data = Annotated[str, _DATA]
DataOfNewRun = Annotated[str | None, _DATA]
DataDir = Annotated[str | None, typer.Option(help="Where the data's files lie.", show_default=False)]
Download = Annotated[bool, typer.Option("--download", help="Fetch missing data into --data-dir.")]
Limit = Annotated[
    int | None, typer.Option(help="Use the first so many training images only.", show_default=False)
]

Preset = Annotated[
    str | None,
    typer.Option(help=f"One of {', '.join(PRESETS)}; {DEFAULT_PRESET} if left out.", show_default=False),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One option of the configuration; may be given again.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seeds every random choice; the configuration's if left out.", show_default=False),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto; auto if left out.", show_default=False)
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; torch's default if left out.", min=1)]

Target = Annotated[str, typer.Option(help=f"Target: {' or '.join(EXPORTERS)}.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
