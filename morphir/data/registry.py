"""From what a user writes after ``--data`` to a `Dataset`: the table of datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from morphir.data import folder
from morphir.data.dataset import Dataset
from morphir.data.digits import load_digits
from morphir.data.source import Source
from morphir.data.vision import load_cifar10, load_cifar100, load_fashion_mnist
from morphir.errors import MorphirError, did_you_mean

DATASETS: Mapping[str, Source] = MappingProxyType(
    {
        "cifar10": load_cifar10,
        "cifar100": load_cifar100,
        "digits": load_digits,
        "fashion-mnist": load_fashion_mnist,
    }
)
DATASET_NAMES = (*DATASETS, f"{folder.PREFIX}DIR")
"""What a dataset may be named by, as help and hints say it."""


def load(
    spec: str,
    data_dir: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    limit: int | None = None,
) -> Dataset:
    """Load the dataset that ``spec`` names.

    Args:
        spec: A name in `DATASETS`, or ``imagefolder:DIR``.
        data_dir: Where torchvision's files lie, in torchvision's own layout.
        download: Whether missing files may be fetched into ``data_dir``.
        image_size: Side of the images: small datasets are padded with black up to it, image folders resized.
            ``None`` is the dataset's own.
        limit: Keep only the first so many training images.

    Raises:
        MorphirError: The name is unknown, files are missing or damaged, or a size makes no sense.
    """
    if limit is not None and limit < 2:
        raise MorphirError(f"limit must be at least 2 images, got {limit}")
    if image_size is not None and image_size < 1:
        raise MorphirError(f"image size must be at least 1 pixel, got {image_size}")
    directory = None if data_dir is None else Path(data_dir).expanduser()
    source = _source(spec)
    dataset = replace(source(data_dir=directory, download=download, image_size=image_size), name=spec)
    return dataset if limit is None else dataset.limited(limit)


def _source(spec: str) -> Source:
    if spec in DATASETS:
        return DATASETS[spec]
    if spec.startswith(folder.PREFIX):
        return folder.source(spec.removeprefix(folder.PREFIX))
    guess = did_you_mean(spec, DATASETS)
    raise MorphirError(f"unknown dataset '{spec}'", hint=f"{guess}Datasets: {', '.join(DATASET_NAMES)}")
