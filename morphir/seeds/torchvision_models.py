"""``torchvision:NAME``: torchvision's classifiers, random weights, any number of classes and channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torchvision
from torch import nn

from morphir.errors import MorphirError, did_you_mean

PREFIX = "torchvision:"
_RGB = 3
_get_model = cast("Callable[..., nn.Module]", torchvision.models.get_model)


def names() -> list[str]:
    """Names of torchvision's classifiers."""
    return torchvision.models.list_models(module=torchvision.models)


def seed(name: str) -> partial[nn.Module]:
    """The builder of torchvision's classifier ``name``.

    Raises:
        MorphirError: torchvision has no such classifier.
    """
    if name not in names():
        hint = did_you_mean(name, names()).rstrip() or f"it has {', '.join(names())}"
        raise MorphirError(f"torchvision has no classifier '{name}'", hint=hint)
    return partial(_build, name)


def _build(name: str, *, width: int | None, in_channels: int, classes: int, image_size: int) -> nn.Module:
    del image_size  # torchvision's CNNs take any size
    if width is not None:
        raise MorphirError(
            f"torchvision:{name} takes no width", hint="leave --width out, or use a factory of your own"
        )
    model = _get_model(name, weights=None, num_classes=classes)
    if in_channels != _RGB:
        _replace_stem(name, model, in_channels)
    return model


def _replace_stem(name: str, model: nn.Module, in_channels: int) -> None:
    """Give the convolution that reads the image ``in_channels`` inputs instead of three."""
    for path, conv in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        if isinstance(conv, nn.Conv2d) and conv.in_channels == _RGB and conv.groups == 1:
            model.set_submodule(path, _like(conv, in_channels))
            return
    raise MorphirError(
        f"torchvision:{name} has no convolution on the RGB image to adapt to {in_channels} channels"
    )


def _like(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    stem = nn.Conv2d(
        in_channels,
        conv.out_channels,
        cast("tuple[int, int]", conv.kernel_size),
        cast("tuple[int, int]", conv.stride),
        padding=cast("tuple[int, int]", conv.padding),
        dilation=cast("tuple[int, int]", conv.dilation),
        bias=conv.bias is not None,
    )
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem
