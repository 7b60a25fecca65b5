"""The networks whose steps are timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from morphir.seeds import resolve


@dataclass(frozen=True)
class Case:
    """A network and its batch.

    Attributes:
        name: What tables call it.
        model: A model of :func:`morphir.seeds.resolve`.
        width: Channels a layer; the model's own where None.
        side: Side of the images in pixels.
        batch: Samples in a batch.
        goal: The largest ratio of a learning step to a training step that the project aims for.
    """

    name: str
    model: str
    width: int | None
    side: int
    batch: int
    goal: float = 1.5

    def build(self) -> nn.Module:
        """Returns the network with the same random weights each time."""
        torch.manual_seed(0)
        return resolve(self.model, width=self.width, image_size=self.side)

    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns random images and labels, the same each time."""
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(self.batch, 3, self.side, self.side, generator=generator)
        return images, torch.randint(0, 10, (self.batch,), generator=generator)


CASES = (
    Case("vgg19", "vgg19", None, 32, 32, goal=4 / 3),
    Case("vgg19-16", "vgg19", 16, 32, 64),
    Case("mobilenetv1-32", "mobilenetv1", 32, 32, 64),
    Case("resnet18", "torchvision:resnet18", None, 32, 32, goal=4 / 3),
    Case("efficientnet_b0", "torchvision:efficientnet_b0", None, 64, 16),
)
EXTRA_CASES = (
    Case("vgg19-64", "vgg19", 64, 32, 64),
    Case("densenet121", "torchvision:densenet121", None, 64, 8),
    Case("mobilenet_v2", "torchvision:mobilenet_v2", None, 64, 8),
    Case("shufflenet_v2_x1_0", "torchvision:shufflenet_v2_x1_0", None, 64, 8),
)
"""Measured where they are named."""
