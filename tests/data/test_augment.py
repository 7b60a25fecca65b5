"""The vectorised crop and flip against one image at a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from morphir.data.augment import Augmentation, Draws


def reference(images: torch.Tensor, draws: Draws, shift: int) -> torch.Tensor:
    height, width = images.shape[-2:]
    results = []
    for image, row, column, flip in zip(images, draws.rows, draws.columns, draws.flips, strict=True):
        padded = functional.pad(image, (shift,) * 4)
        crop = padded[:, row : row + height, column : column + width]
        results.append(crop.flip(-1) if flip else crop)
    return torch.stack(results)


@pytest.mark.parametrize("shape", [(40, 3, 8, 8), (17, 1, 5, 9)])
@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_matches_one_image_at_a_time(shape: tuple[int, ...], shift: int, flip: bool) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    augmentation = Augmentation(shift, flip)
    draws = augmentation.draw(len(images), torch.Generator().manual_seed(1))
    augmented = augmentation(images, draws)
    assert augmented.dtype == torch.uint8
    assert torch.equal(augmented, reference(images, draws, shift))


def test_draws_cover_every_offset_and_half_the_flips() -> None:
    draws = Augmentation(4, True).draw(9000, torch.Generator().manual_seed(0))
    for offsets in (draws.rows, draws.columns):
        counts = torch.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert (counts - 1000).abs().max() < 150  # five standard deviations
    assert abs(int(draws.flips.sum()) - 4500) < 240
    assert not Augmentation(4, False).draw(9000, torch.Generator()).flips.any()


def test_no_shift_and_no_flip_is_the_identity() -> None:
    images = torch.randint(0, 256, (5, 2, 6, 6), dtype=torch.uint8)
    augmentation = Augmentation(0, False)
    assert torch.equal(augmentation(images, augmentation.draw(5, torch.Generator())), images)
