"""A convolution without the taps of its kernel that meet nothing but padding: exact, and less work.

Late layers of a deep network see few positions where images are small. A 3 x 3 kernel with a padding of 1 on
1 x 1 values multiplies them with its centre alone; the other eight taps multiply zeros, and their gradient is
zero. Left out, they cost neither arithmetic nor a pass over the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class LiveTaps:
    """The part of a kernel that meets values.

    Attributes:
        taps: For every spatial axis the taps.
        padding: For every spatial axis the padding that goes with them.
    """

    taps: tuple[slice, ...]
    padding: tuple[int, ...]

    def of(self, kernel: torch.Tensor) -> torch.Tensor:
        """Returns that part of a kernel ``[channels, channels, *taps]``, a view."""
        return kernel[(..., *self.taps)]


@lru_cache(maxsize=4096)
def live_taps(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> LiveTaps | None:
    """Returns the taps that meet values of these sizes; None where all do.

    Args:
        sizes: Spatial sizes of what is convolved.
        kernel: Spatial sizes of the kernel.
        stride: Of the convolution, for every spatial axis.
        padding: Zeros on either side.
        dilation: Distance of two taps.
    """
    axes = [_axis(*axis) for axis in zip(sizes, kernel, stride, padding, dilation, strict=True)]
    if all(taps.stop - taps.start == size for (taps, _), size in zip(axes, kernel, strict=True)):
        return None
    return LiveTaps(tuple(taps for taps, _ in axes), tuple(zeros for _, zeros in axes))


def _axis(size: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[slice, int]:
    """Returns the taps along one axis, and their padding; all of them where fewer would move the outputs."""
    whole = slice(0, kernel), padding
    outputs = _outputs(size, kernel, stride, padding, dilation)
    reach = [tap * dilation - padding for tap in range(kernel)]
    live = [
        tap
        for tap, offset in enumerate(reach)
        if any(0 <= output * stride + offset < size for output in range(outputs))
    ]
    if not live:
        return whole
    first, last = min(live[0], padding // dilation), live[-1] + 1
    left = padding - first * dilation
    same = _outputs(size, last - first, stride, left, dilation) == outputs
    return (slice(first, last), left) if same else whole


def _outputs(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
