"""MobileNetV1 for small images (Howard et al., 2017): a stem and 13 depthwise-separable blocks."""

from __future__ import annotations

import torch
from torch import nn

from morphir.seeds.layers import conv_bn_relu, initialise

STEM_WIDTH = 32
BLOCKS = (  # full width, stride
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(nn.Module):
    """Images ``[N, in_channels, image_size, image_size]`` to logits ``[N, classes]``.

    ``features.0`` to ``features.2`` are the stem; each later entry is one block: depthwise convolution, BN,
    ReLU, pointwise convolution, BN, ReLU.

    Args:
        width: Channels of the stem and of every block; the full 32 to 1024 where ``None``.
        in_channels: Channels of the images.
        classes: Number of logits.
        image_size: Side of the images. The stem strides only above 64 pixels, as is usual for CIFAR.
    """

    def __init__(
        self, *, width: int | None = None, in_channels: int = 3, classes: int = 10, image_size: int = 32
    ) -> None:
        super().__init__()
        channels = STEM_WIDTH if width is None else width
        layers = conv_bn_relu(in_channels, channels, 3, stride=2 if image_size > 64 else 1)
        for full_width, stride in BLOCKS:
            outputs = full_width if width is None else width
            layers.append(_separable(channels, outputs, stride))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits ``[N, classes]``."""
        pooled = self.pool(self.features(images))
        return self.classifier(torch.flatten(pooled, 1))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    depthwise = conv_bn_relu(inputs, inputs, 3, stride=stride, groups=inputs)
    return nn.Sequential(*depthwise, *conv_bn_relu(inputs, outputs, 1))
