"""torchvision's small datasets, read from its own files into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torchvision import datasets

from morphir.data.augment import Augmentation
from morphir.data.dataset import Dataset, Normalisation, TensorSplit, padded
from morphir.errors import MorphirError


class _Stored(Protocol):
    """What torchvision's dataset objects hold."""

    data: torch.Tensor | np.ndarray
    targets: torch.Tensor | list[int]


@dataclass(frozen=True)
class VisionDataset:
    """One row of the table.

    Attributes:
        name: As the user writes it.
        reader: torchvision's class.
        folder: The directory below the data directory that torchvision reads.
        classes: Number of classes.
        image_size: Side without being asked otherwise: 32, so that all of VGG-19's pools fit.
        normalisation: With the statistics of the training images as they are stored.
    """

    name: str
    reader: Callable[..., object]
    folder: str
    classes: int
    normalisation: Normalisation
    image_size: int = 32


_FASHION_MNIST = VisionDataset(
    "fashion-mnist",
    datasets.FashionMNIST,
    "FashionMNIST/raw",
    10,
    Normalisation(mean=(0.2860,), std=(0.3530,)),
)
_CIFAR10 = VisionDataset(
    "cifar10",
    datasets.CIFAR10,
    "cifar-10-batches-py",
    10,
    Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
)
_CIFAR100 = VisionDataset(
    "cifar100",
    datasets.CIFAR100,
    "cifar-100-python",
    100,
    Normalisation(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
)


def _load(row: VisionDataset, *, data_dir: Path | None, download: bool, image_size: int | None) -> Dataset:
    directory = _directory(row, data_dir, download)
    side = image_size or row.image_size
    train, test = (_read(row, directory, part, download, side) for part in (True, False))
    return Dataset(
        name=row.name,
        train=train,
        test=test,
        channels=train.images.shape[1],
        classes=row.classes,
        image_size=side,
        normalisation=row.normalisation,
        augmentation=Augmentation(shift=4, flip=True),
    )


def _directory(row: VisionDataset, data_dir: Path | None, download: bool) -> Path:
    if data_dir is None:
        raise MorphirError(
            f"{row.name} needs a data directory",
            hint="name one with --data-dir, to download into"
            if download
            else f"name the one that holds {row.folder}/ with --data-dir, or one to --download into",
        )
    if not data_dir.is_dir() and not download:
        raise MorphirError(
            f"data directory '{data_dir}' does not exist",
            hint=f"name the directory that holds {row.folder}/ with --data-dir, or add --download",
        )
    return data_dir


def _read(row: VisionDataset, directory: Path, train: bool, download: bool, side: int) -> TensorSplit:
    try:
        stored = cast("_Stored", row.reader(root=directory, train=train, download=download))
    except Exception as error:  # torchvision raises whatever its reader or its network stumbles over
        raise _unreadable(row, directory, download, error) from error
    images = torch.as_tensor(stored.data)
    # Fashion-MNIST is stored as [S, H, W], CIFAR as [S, H, W, C].
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return TensorSplit(padded(images, side, row.name), torch.as_tensor(stored.targets))


def _unreadable(row: VisionDataset, directory: Path, download: bool, error: Exception) -> MorphirError:
    place = directory / row.folder
    if download:
        message, hint = f"{row.name} could not be downloaded to '{directory}'", "is there a network?"
    elif place.is_dir():
        message, hint = f"{row.name} in '{place}' is incomplete or damaged", "remove it and add --download"
    else:
        message, hint = f"{row.name} is not in '{directory}'", f"it holds no {row.folder}/; add --download"
    return MorphirError(f"{message} ({type(error).__name__}: {error})", hint=hint)


load_fashion_mnist = partial(_load, _FASHION_MNIST)
load_cifar10 = partial(_load, _CIFAR10)
load_cifar100 = partial(_load, _CIFAR100)
