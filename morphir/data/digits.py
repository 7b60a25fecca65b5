"""``digits``: the 1,797 8x8 digits that scikit-learn ships, in a fixed 80/20 split."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch

from morphir.data.augment import Augmentation
from morphir.data.dataset import Dataset, Normalisation, TensorSplit, padded

SIDE = 8
_NORMALISATION = Normalisation(mean=(0.305,), std=(0.376,), white=16.0)


def load_digits(*, data_dir: Path | None, download: bool, image_size: int | None) -> Dataset:
    """Load the digits; there is nothing to download."""
    del data_dir, download
    images, targets = _arrays()
    images = padded(images, image_size or SIDE, "digits")
    train, test = _split(len(targets))
    return Dataset(
        name="digits",
        train=TensorSplit(images[train], targets[train]),
        test=TensorSplit(images[test], targets[test]),
        channels=1,
        classes=10,
        image_size=images.shape[-1],
        normalisation=_NORMALISATION,
        augmentation=Augmentation(shift=1, flip=False),
    )


def _arrays() -> tuple[torch.Tensor, torch.Tensor]:
    # Takes a second, which whoever does not use the digits need not wait.
    from sklearn import datasets  # noqa: PLC0415

    pixels, targets = cast("tuple[np.ndarray, np.ndarray]", datasets.load_digits(return_X_y=True))
    images = torch.as_tensor(pixels, dtype=torch.uint8).reshape(-1, 1, SIDE, SIDE)
    return images, torch.as_tensor(targets, dtype=torch.int64)


def _split(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the training and the test images, the same in every run."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[: count * 4 // 5].sort().values, order[count * 4 // 5 :].sort().values
