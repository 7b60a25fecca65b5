"""ResNet-20 for small images (He et al., 2016, section 4.2); projection shortcuts where the shape changes."""

from __future__ import annotations

import torch
from torch import nn

from morphir.seeds.layers import initialise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``[N, inputs, H, W]`` to ``[N, outputs, H/stride, W/stride]``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``relu(residual + shortcut)``."""
        residual = self.relu(self.bn1(self.conv1(inputs)))
        residual = self.bn2(self.conv2(residual))
        return self.relu(residual + self.downsample(inputs))


class ResNet20(nn.Module):
    """Images ``[N, in_channels, H, W]`` to logits ``[N, classes]``; attribute names are torchvision's.

    Args:
        width: Channels of the first stage, doubled in the second and again in the third; 16 where ``None``.
        in_channels: Channels of the images.
        classes: Number of logits.
        image_size: Any; the layers are the same for all.
    """

    def __init__(
        self, *, width: int | None = None, in_channels: int = 3, classes: int = 10, image_size: int = 32
    ) -> None:
        del image_size
        super().__init__()
        base = 16 if width is None else width
        self.conv1 = nn.Conv2d(in_channels, base, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU()
        self.layer1 = _stage(base, base, 1)
        self.layer2 = _stage(base, 2 * base, 2)
        self.layer3 = _stage(2 * base, 4 * base, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * base, classes)
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits ``[N, classes]``."""
        stream = self.relu(self.bn1(self.conv1(images)))
        stream = self.layer3(self.layer2(self.layer1(stream)))
        return self.fc(torch.flatten(self.avgpool(stream), 1))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    tail = [BasicBlock(outputs, outputs, 1) for _ in range(2)]
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *tail)
