"""What a user says about a model, and the traced graph that comes of it."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.ir.state import evaluation_mode
from morphir.seeds import resolve

SMALL_IMAGE = 32
LARGE_IMAGE = 224
_EXAMPLES = 4
"""Images in the example batch; enough for batch statistics that are not degenerate."""


class ModelSpec(BaseModel):
    """A model as it is named on the command line.

    Attributes:
        model: A seed, ``torchvision:NAME`` or ``path/to/file.py:factory``.
        width: Channels per layer; None is the model's own.
        channels: Channels of the images.
        classes: Number of classes.
        image_size: Side of the images in pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    width: int | None = None
    channels: int = 3
    classes: int = 10
    image_size: int = SMALL_IMAGE

    @staticmethod
    def of(
        model: str, *, width: int | None, channels: int, classes: int, image_size: int | None
    ) -> ModelSpec:
        """What a user says of a fresh model; without a size, images are as large as such models take them."""
        size = _default_image_size(model) if image_size is None else image_size
        return ModelSpec(model=model, width=width, channels=channels, classes=classes, image_size=size)

    def trace(self) -> Graph:
        """Builds the model, traces it, and checks that it yields one logit per class.

        Raises:
            MorphirError: if the model cannot be built or traced, or has another number of classes.
        """
        model = resolve(
            self.model,
            width=self.width,
            in_channels=self.channels,
            classes=self.classes,
            image_size=self.image_size,
        )
        return trace(model, torch.zeros(_EXAMPLES, self.channels, self.image_size, self.image_size))

    @property
    def file(self) -> Path | None:
        """The user's file that builds the model; None where another does."""
        file, _, _ = self.model.rpartition(":")
        return Path(file) if file.endswith(".py") else None

    def absolute(self) -> ModelSpec:
        """The same with the path of a user's file made absolute, to be found again from elsewhere."""
        if self.file is None:
            return self
        factory = self.model.rpartition(":")[2]
        return self.model_copy(update={"model": f"{self.file.resolve()}:{factory}"})


def check_classes(graph: Graph, name: str, classes: int) -> None:
    """Raises :class:`MorphirError` unless the model yields logits ``[N, classes]``."""
    args, kwargs = graph.inputs.materialise(graph.device)
    with torch.no_grad(), evaluation_mode(graph):
        logits: object = graph(*args, **kwargs)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise MorphirError(
            f"{name} yields {shape}, not logits [images, classes]",
            hint="wrap it in a factory of your own, path/to/file.py:factory, that returns the logits alone",
        )
    if logits.shape[1] != classes:
        raise MorphirError(
            f"wrong number of classes: {name} yields {logits.shape[1]}, the data has {classes}",
            hint=f"build it with {classes}; a factory that takes an argument 'classes' is told",
        )


def _default_image_size(model: str) -> int:
    return LARGE_IMAGE if model.startswith("torchvision:") else SMALL_IMAGE
