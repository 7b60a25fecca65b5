"""``imagefolder:DIR``: DIR/train/CLASS/*.jpg and DIR/val (or DIR/test), decoded as batches ask for them."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor

from morphir.data.augment import Augmentation
from morphir.data.dataset import Dataset, Normalisation
from morphir.data.source import Source
from morphir.errors import MorphirError

PREFIX = "imagefolder:"
SIDE = 32
_IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count())


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Image files, decoded in threads.

    Attributes:
        files: One path per image.
        targets: ``int64[S]``, on the CPU.
        image_size: Side to which images are cropped, around their centre, and resized.
    """

    files: tuple[str, ...]
    targets: torch.Tensor
    image_size: int
    pool: ThreadPoolExecutor = field(default_factory=_pool, repr=False)

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images ``uint8[B, 3, H, W]`` and targets at ``indices``, on the CPU."""
        names = [self.files[int(index)] for index in indices]
        images = list(self.pool.map(partial(_decode, self.image_size), names))
        return torch.stack(images), self.targets[indices.cpu()]

    def to(self, device: torch.device) -> FolderSplit:
        """The same split: files stay where they are, the loader moves each batch."""
        del device
        return self

    def first(self, count: int) -> FolderSplit:
        """The first ``count`` images."""
        return replace(self, files=self.files[:count], targets=self.targets[:count])


def source(directory: str) -> Source:
    """The source that reads ``directory``."""
    return partial(_load, Path(directory).expanduser())


def _load(root: Path, *, data_dir: Path | None, download: bool, image_size: int | None) -> Dataset:
    del data_dir, download
    side = image_size or SIDE
    train_files, test_files = _open(root, "train"), _open(root, "val", "test")
    if train_files.classes != test_files.classes:
        odd = sorted(set(train_files.classes) ^ set(test_files.classes))
        raise MorphirError(
            f"train and {Path(test_files.root).name} in '{root}' hold different classes: {', '.join(odd)}",
            hint="give every class a folder in both",
        )
    return Dataset(
        name=f"{PREFIX}{root}",
        train=_split(train_files, side),
        test=_split(test_files, side),
        channels=3,
        classes=len(train_files.classes),
        image_size=side,
        normalisation=_IMAGENET,
        augmentation=Augmentation(shift=side // 8, flip=True),  # the paper's 4 of 32 pixels, to scale
    )


def _open(root: Path, *parts: str) -> datasets.ImageFolder:
    layout = f"the layout is {root}/train/CLASS/IMAGE and {root}/val/CLASS/IMAGE (or test)"
    if not root.is_dir():
        raise MorphirError(f"image folder '{root}' does not exist", hint=layout)
    folder = next((root / part for part in parts if (root / part).is_dir()), None)
    if folder is None:
        raise MorphirError(f"image folder '{root}' has no {' or '.join(parts)} folder", hint=layout)
    try:
        return datasets.ImageFolder(folder)
    except FileNotFoundError as error:  # no class folder, or one without images
        raise MorphirError(f"no images by class in '{folder}': {error}", hint=layout) from error


def _split(files: datasets.ImageFolder, side: int) -> FolderSplit:
    """The files in a fixed mixed order, so that the first so many are of every class."""
    pairs = list(files.samples)
    random.Random(0).shuffle(pairs)
    return FolderSplit(tuple(name for name, _ in pairs), torch.tensor([label for _, label in pairs]), side)


def _decode(side: int, name: str) -> torch.Tensor:
    try:
        with Image.open(name) as file:
            image = ImageOps.fit(file.convert("RGB"), (side, side), Image.Resampling.BILINEAR)
    except OSError as error:
        raise MorphirError(
            f"image '{name}' cannot be read: {error}", hint="remove or replace the file"
        ) from error
    return pil_to_tensor(image)
