"""From what a user writes after ``--model`` to a model: our seeds, torchvision's names, a user's own file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from torch import nn

from morphir.errors import MorphirError, did_you_mean
from morphir.seeds import torchvision_models, user_file
from morphir.seeds.mobilenet import MobileNetV1
from morphir.seeds.resnet import ResNet20
from morphir.seeds.vgg import VGG19


class Seed(Protocol):
    """Builds a fresh model for images ``[N, in_channels, image_size, image_size]`` and ``classes`` logits."""

    def __call__(self, *, width: int | None, in_channels: int, classes: int, image_size: int) -> nn.Module:
        """Build the model."""
        ...


SEEDS: Mapping[str, Seed] = MappingProxyType(
    {"mobilenetv1": MobileNetV1, "resnet20": ResNet20, "vgg19": VGG19}
)
MODEL_NAMES = (*SEEDS, f"{torchvision_models.PREFIX}NAME", "path/to/file.py:factory")
"""What a model may be named by, as help and hints say it."""


def resolve(
    spec: str, *, width: int | None = None, in_channels: int = 3, classes: int = 10, image_size: int = 32
) -> nn.Module:
    """Build the model that ``spec`` names, freshly initialised, in train mode, on the CPU.

    Args:
        spec: A name in `SEEDS`, ``torchvision:NAME`` or ``path/to/file.py:factory``.
        width: Channels per layer (base channels for a ResNet); ``None`` is the model's own.
        in_channels: Channels of the images.
        classes: Number of classes.
        image_size: Side of the images in pixels.

    Raises:
        MorphirError: The name is unknown, the model takes no ``width``, a number is below 1, or the user's
            file or factory is missing or fails.
    """
    sizes = {"width": width, "in_channels": in_channels, "classes": classes, "image_size": image_size}
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise MorphirError(f"{name} must be at least 1, got {value}")
    return _seed(spec)(width=width, in_channels=in_channels, classes=classes, image_size=image_size)


def _seed(spec: str) -> Seed:
    if spec in SEEDS:
        return SEEDS[spec]
    if spec.startswith(torchvision_models.PREFIX):
        return torchvision_models.seed(spec.removeprefix(torchvision_models.PREFIX))
    if user_file.matches(spec):
        return user_file.seed(spec)
    raise _unknown(spec)


def _unknown(spec: str) -> MorphirError:
    guess = did_you_mean(spec, SEEDS)
    if spec in torchvision_models.names():
        guess = f"did you mean {torchvision_models.PREFIX}{spec}? "
    return MorphirError(f"unknown model '{spec}'", hint=f"{guess}Models: {', '.join(MODEL_NAMES)}")
