"""VGG-19 for small images, as the paper grows it (section 4): 16 convolutions with batch norm, one linear."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from morphir.errors import MorphirError
from morphir.seeds.layers import conv_bn_relu, initialise

FULL_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)
POOL_AFTER = frozenset({2, 4, 8, 12, 16})


class VGG19(nn.Module):
    """Images ``[N, in_channels, image_size, image_size]`` to logits ``[N, classes]``.

    Args:
        width: Channels of every convolution, or of each of the 16; the full 64 to 512 where ``None``.
        in_channels: Channels of the images.
        classes: Number of logits.
        image_size: Side of the images. A pool that would find a single pixel is left out, which lets 8-pixel
            digits through; 32 pixels use all five.
    """

    def __init__(
        self,
        *,
        width: int | Sequence[int] | None = None,
        in_channels: int = 3,
        classes: int = 10,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        widths = _widths(width)
        self.features = nn.Sequential(*_features(in_channels, widths, image_size))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1], classes)
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits ``[N, classes]``."""
        pooled = self.pool(self.features(images))
        return self.classifier(torch.flatten(pooled, 1))


def _widths(width: int | Sequence[int] | None) -> tuple[int, ...]:
    if width is None:
        return FULL_WIDTHS
    if isinstance(width, int):
        return (width,) * len(FULL_WIDTHS)
    if len(width) != len(FULL_WIDTHS):
        raise MorphirError(
            f"VGG-19 has {len(FULL_WIDTHS)} convolutions, got {len(width)} widths",
            hint="give one width for all, or one for each",
        )
    return tuple(width)


def _features(in_channels: int, widths: tuple[int, ...], side: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(zip((in_channels, *widths), widths, strict=False), start=1):
        layers += conv_bn_relu(inputs, outputs, 3)
        if number in POOL_AFTER and side > 1:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return layers
