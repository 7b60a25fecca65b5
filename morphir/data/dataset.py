"""What a dataset is: two splits of uint8 images, how they are normalised, how they are augmented."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch.nn import functional

from morphir.data.augment import Augmentation
from morphir.errors import MorphirError


class Split(Protocol):
    """Images of one size with their classes, in a fixed order."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def fetch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images ``uint8[B, C, H, W]`` and targets ``int64[B]`` at ``indices`` (``int64[B]``)."""
        ...

    def to(self, device: torch.device) -> Split:
        """The same split, held on ``device`` where it is held in memory at all."""
        ...

    def first(self, count: int) -> Split:
        """The first ``count`` images."""
        ...


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """A split held in memory.

    Attributes:
        images: ``uint8[S, C, H, W]``.
        targets: ``int64[S]``.
    """

    images: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def fetch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and targets at ``indices``."""
        indices = indices.to(self.targets.device)
        return self.images[indices], self.targets[indices]

    def to(self, device: torch.device) -> TensorSplit:
        """The same split on ``device``."""
        return TensorSplit(self.images.to(device), self.targets.to(device))

    def first(self, count: int) -> TensorSplit:
        """The first ``count`` images."""
        return TensorSplit(self.images[:count], self.targets[:count])


@dataclass(frozen=True)
class Normalisation:
    """``(pixel / white - mean) / std``, per channel.

    Attributes:
        mean: One number per channel, in [0, 1].
        std: One number per channel, in [0, 1].
        white: The pixel value that stands for 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float = 255.0

    def affine(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """``scale`` and ``offset``, ``float32[C, 1, 1]``: normalised, it is ``pixel * scale + offset``."""
        mean = torch.tensor(self.mean, dtype=torch.float64)[:, None, None]
        std = torch.tensor(self.std, dtype=torch.float64)[:, None, None]
        return (1 / (self.white * std)).float().to(device), (-mean / std).float().to(device)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits and what a model has to know about them.

    Attributes:
        name: As the user wrote it.
        train: Training images.
        test: Test images.
        channels: Channels of an image.
        classes: Number of classes.
        image_size: Side of an image in pixels.
        normalisation: From stored pixels to what the model reads.
        augmentation: What training images go through.
    """

    name: str
    train: Split
    test: Split
    channels: int
    classes: int
    image_size: int
    normalisation: Normalisation
    augmentation: Augmentation

    def limited(self, count: int) -> Dataset:
        """The same dataset with the first ``count`` training images only."""
        return replace(self, train=self.train.first(count))


def padded(images: torch.Tensor, image_size: int, name: str) -> torch.Tensor:
    """Black margins around ``[S, C, H, H]`` images, up to ``image_size``.

    Raises:
        MorphirError: The images are larger than ``image_size``.
    """
    side = images.shape[-1]
    if image_size < side:
        raise MorphirError(
            f"{name} has images of {side} pixels, {image_size} is too small",
            hint=f"leave the image size out, or give {side} or more",
        )
    before = (image_size - side) // 2
    after = image_size - side - before
    return functional.pad(images, (before, after, before, after))
