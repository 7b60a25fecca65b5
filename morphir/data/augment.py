"""The paper's augmentation (section 4), a whole batch at once: zero-padded random crops and horizontal flips.

Random numbers are drawn for an epoch before it starts, on the CPU, so that every device sees the same images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Draws:
    """The random choices for ``S`` images.

    Attributes:
        rows: Vertical crop offsets in 0 to twice the shift, ``int64[S]``.
        columns: Horizontal crop offsets, ``int64[S]``.
        flips: Which images are mirrored, ``bool[S]``.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    flips: torch.Tensor

    def __getitem__(self, images: slice) -> Draws:
        return Draws(self.rows[images], self.columns[images], self.flips[images])

    def to(self, device: torch.device) -> Draws:
        """The same choices on ``device``."""
        return Draws(self.rows.to(device), self.columns.to(device), self.flips.to(device))


@dataclass(frozen=True)
class Augmentation:
    """A random crop from an image padded by ``shift`` black pixels on each side, then perhaps a mirror.

    Attributes:
        shift: Largest movement in each direction, in pixels.
        flip: Whether half of the images are mirrored left to right.
    """

    shift: int = 4
    flip: bool = True

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Choices for ``count`` images."""
        rows = torch.randint(0, 2 * self.shift + 1, (count,), generator=generator)
        columns = torch.randint(0, 2 * self.shift + 1, (count,), generator=generator)
        flips = torch.rand(count, generator=generator) < (0.5 if self.flip else 0.0)
        return Draws(rows, columns, flips)

    def __call__(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Augmented ``[B, C, H, W]`` images; one gather, whatever the batch size."""
        batch, _, height, width = images.shape
        span = torch.arange(width, device=images.device)
        columns = torch.where(draws.flips[:, None], span.flip(0), span) + draws.columns[:, None]
        rows = torch.arange(height, device=images.device) + draws.rows[:, None]
        samples = torch.arange(batch, device=images.device)
        padded = functional.pad(images, (self.shift,) * 4)
        gathered = padded[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return gathered.permute(0, 3, 1, 2).contiguous()
