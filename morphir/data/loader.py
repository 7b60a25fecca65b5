"""Batches on the device; what an epoch holds depends on (seed, epoch) alone, so any epoch can be resumed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from morphir.data.augment import Augmentation
from morphir.data.dataset import Dataset, Normalisation, Split
from morphir.errors import MorphirError


class Loader:
    """Iterates over a split, any number of times; each time yields the current epoch from its start.

    Args:
        split: The images. Those held in memory move to ``device`` once, here.
        normalisation: From pixels to what the model reads.
        batch_size: Images per batch; the last batch may be smaller.
        shuffle: Whether the order is random; else it is the split's.
        augmentation: What each image goes through, if anything.
        drop_single: Leave out a last batch of one image, whose batch statistics would be degenerate.
        seed: With the epoch, determines order and augmentation. Not negative.
        device: Where batches are yielded.

    Attributes:
        batch_size: As given.
        device: As given.
        epoch: The epoch that iteration yields.
    """

    def __init__(
        self,
        split: Split,
        normalisation: Normalisation,
        *,
        batch_size: int,
        shuffle: bool = False,
        augmentation: Augmentation | None = None,
        drop_single: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise MorphirError(f"batch size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.epoch = 0
        self._split = split.to(self.device)
        # Made once: a copy to a GPU in every step would make the host wait.
        self._scale, self._offset = normalisation.affine(self.device)
        self._shuffle = shuffle
        self._augmentation = augmentation
        self._seed = seed
        single = drop_single and batch_size > 1 and len(split) % batch_size == 1
        if single and len(split) == 1:
            raise MorphirError(
                "there is one image alone, and a training batch of one is left out: its batch statistics are "
                "degenerate",
                hint="give more images, or a batch size of 1",
            )
        self._count = len(split) - 1 if single else len(split)

    @property
    def dataset_size(self) -> int:
        """Number of images in the split."""
        return len(self._split)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self._count // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that iteration yields from now on; it does not advance by itself."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield inputs ``float32[B, C, H, W]`` and targets ``int64[B]``, on the device."""
        generator = _generator(self._seed, self.epoch)
        size = len(self._split)
        order = torch.randperm(size, generator=generator) if self._shuffle else torch.arange(size)
        augmentation = self._augmentation
        draws = augmentation.draw(size, generator).to(self.device) if augmentation else None
        order = order.to(self.device)
        for start in range(0, self._count, self.batch_size):
            batch = slice(start, start + self.batch_size)
            images, targets = self._split.fetch(order[batch])
            images, targets = images.to(self.device), targets.to(self.device)
            if augmentation and draws:
                images = augmentation(images, draws[batch])
            yield images * self._scale + self._offset, targets


def train_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Loader:
    """Shuffled, augmented training batches of ``dataset``."""
    return Loader(
        dataset.train,
        dataset.normalisation,
        batch_size=batch_size,
        shuffle=True,
        augmentation=dataset.augmentation,
        drop_single=True,
        seed=seed,
        device=device,
    )


def eval_loader(dataset: Dataset, batch_size: int = 256, *, device: torch.device | str = "cpu") -> Loader:
    """Test batches of ``dataset``: all of them, in order, as they are.

    Args:
        dataset: The images.
        batch_size: Images per batch; results do not depend on it, the memory of an evaluation does.
        device: Where batches are yielded.
    """
    return Loader(dataset.test, dataset.normalisation, batch_size=batch_size, device=device)


def _generator(seed: int, epoch: int) -> torch.Generator:
    """A generator whose stream differs for every (seed, epoch), also for neighbouring ones."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
