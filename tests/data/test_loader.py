"""Loaders: every epoch from (seed, epoch) alone, every image once, normalised as written."""

from __future__ import annotations

import pytest
import torch

from morphir.data import Augmentation, Loader, Normalisation, TensorSplit, eval_loader, load, train_loader
from morphir.errors import MorphirError

PLAIN = Normalisation(mean=(0.0,), std=(1.0,), white=1.0)


def numbered(count: int) -> TensorSplit:
    """Images whose every pixel is their number, and whose target is too."""
    numbers = torch.arange(count)
    return TensorSplit(numbers.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).clone(), numbers)


def epoch(loader: Loader, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    loader.set_epoch(number)
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    digits = load("digits", limit=100)
    loader = train_loader(digits, 32, seed=5)
    for number in (0, 1, 2):
        epoch(loader, number)
    inputs, targets = epoch(loader, 7)
    torch.manual_seed(123)
    again_inputs, again_targets = epoch(train_loader(digits, 32, seed=5), 7)
    assert torch.equal(inputs, again_inputs)
    assert torch.equal(targets, again_targets)


def test_epochs_and_seeds_differ() -> None:
    orders = {
        (seed, number): tuple(
            epoch(Loader(numbered(50), PLAIN, batch_size=8, shuffle=True, seed=seed), number)[1].tolist()
        )
        for seed in (0, 1)
        for number in (0, 1)
    }
    assert len(set(orders.values())) == 4


def test_every_image_once_with_its_target() -> None:
    loader = Loader(numbered(50), PLAIN, batch_size=8, shuffle=True)
    assert [len(targets) for _, targets in loader] == [8] * 6 + [2]
    assert (len(loader), loader.dataset_size, loader.batch_size) == (7, 50, 8)
    inputs, targets = epoch(loader, 3)
    assert sorted(targets.tolist()) == list(range(50))
    assert targets.tolist() != list(range(50))
    assert torch.equal(inputs[:, 0, 0, 0], targets.float())


def test_without_shuffling_the_order_is_the_splits() -> None:
    _, targets = epoch(Loader(numbered(10), PLAIN, batch_size=4), 5)
    assert targets.tolist() == list(range(10))


def test_a_single_last_image_may_be_left_out() -> None:
    sizes = {
        count: [len(t) for _, t in Loader(numbered(count), PLAIN, batch_size=4, drop_single=True)]
        for count in (8, 9, 10)
    }
    assert sizes == {8: [4, 4], 9: [4, 4], 10: [4, 4, 2]}
    assert len(Loader(numbered(9), PLAIN, batch_size=4, drop_single=True)) == 2
    assert len(Loader(numbered(9), PLAIN, batch_size=4)) == 3
    assert len(Loader(numbered(9), PLAIN, batch_size=1, drop_single=True)) == 9


def test_normalisation() -> None:
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    loader = Loader(TensorSplit(images, torch.zeros(6)), Normalisation(mean, std), batch_size=6)
    inputs, _ = next(iter(loader))
    assert inputs.dtype == torch.float32
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(inputs[:, channel].double(), expected, rtol=1e-6, atol=1e-6)


def test_training_augments_and_evaluation_does_not() -> None:
    digits = load("digits")
    scale, offset = digits.normalisation.affine(torch.device("cpu"))
    assert isinstance(digits.test, TensorSplit)
    inputs, targets = epoch(eval_loader(digits), 1)
    assert torch.equal(inputs, digits.test.images * scale + offset)
    assert torch.equal(targets, digits.test.targets)
    augmented, _ = epoch(train_loader(digits, 64, seed=2), 1)
    plain, _ = epoch(Loader(digits.train, digits.normalisation, batch_size=64, shuffle=True, seed=2), 1)
    moved = (augmented != plain).flatten(1).any(1).float().mean().item()
    assert moved == pytest.approx(8 / 9, abs=0.05)  # one of the nine shifts is no shift


def test_augmentation_is_drawn_per_image_not_per_batch_size() -> None:
    def epoch_of(batch_size: int) -> torch.Tensor:
        loader = Loader(
            numbered(40), PLAIN, batch_size=batch_size, shuffle=True, augmentation=Augmentation(1, True)
        )
        return epoch(loader, 4)[0]

    assert torch.equal(epoch_of(8), epoch_of(13))


def test_batches_below_one_are_refused() -> None:
    with pytest.raises(MorphirError, match="batch size must be at least 1, got 0"):
        Loader(numbered(4), PLAIN, batch_size=0)


def test_one_image_alone_cannot_be_left_out() -> None:
    with pytest.raises(MorphirError, match="one image alone.*\n.*a batch size of 1"):
        Loader(numbered(1), PLAIN, batch_size=4, drop_single=True)
    assert len(Loader(numbered(1), PLAIN, batch_size=1, drop_single=True)) == 1
    assert len(Loader(numbered(1), PLAIN, batch_size=4)) == 1
