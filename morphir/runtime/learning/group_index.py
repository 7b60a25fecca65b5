"""From the positions of one tensor dimension to channel groups, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from morphir.errors import MorphirError
from morphir.runtime.learning.precision import at_least_single


@dataclass(frozen=True)
class GroupIndex:
    """Which group each position along ``dim`` of a tensor belongs to.

    Attributes:
        dim: The dimension; samples lie along dimension 0.
        width: Number of groups.
        repeat: How many positions each group holds, where the groups stand in order and fill the dimension;
            else 0.
        index: Group of each position, ``width`` for none; only where ``repeat`` is 0.
    """

    dim: int
    width: int
    repeat: int
    index: torch.Tensor | None

    @staticmethod
    def of(dim: int, groups: Sequence[int], width: int, device: torch.device) -> GroupIndex:
        """Makes the index of a binding's ``groups``, where -1 is no group."""
        repeat = len(groups) // width if width else 0
        if repeat and list(groups) == [group for group in range(width) for _ in range(repeat)]:
            return GroupIndex(dim, width, repeat, None)
        known = [group if group >= 0 else width for group in groups]
        return GroupIndex(dim, width, 0, torch.tensor(known, device=device))

    def sum(self, values: torch.Tensor, samples: int) -> torch.Tensor:
        """Sums over each group's positions: ``[S or S * k, ...]`` to ``[S, width]``, float32 at least."""
        others, dtype = self.others(values.dim()), at_least_single(values.dtype)
        return self.gather(values.sum(others, dtype=dtype) if others else values.to(dtype), samples)

    def others(self, rank: int) -> list[int]:
        """Returns the dimensions of a tensor that are neither samples' nor channels'."""
        return [dim for dim in range(1, rank) if dim != self.dim]

    def gather(self, sums: torch.Tensor, samples: int) -> torch.Tensor:
        """Sums over each group's positions: ``[S or S * k, positions]`` to ``[S, width]``."""
        each = each_sample(sums.shape[0], samples)
        return gathered(sums, each, self.repeat or self.width, self.index)

    def rows(self, weights: torch.Tensor, leading: int) -> torch.Tensor:
        """Lays ``[S, width]`` out as ``[leading, positions]``; positions of no group get 0."""
        samples = weights.shape[0]
        if self.index is not None:
            weights = torch.nn.functional.pad(weights, (0, 1)).index_select(1, self.index)
        elif self.repeat > 1:
            weights = weights.repeat_interleave(self.repeat, dim=1)
        if leading != samples:
            weights = weights.repeat_interleave(each_sample(leading, samples), dim=0)
        return weights

    def spread(self, weights: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Lays ``[S, width]`` out so that it multiplies ``like``; positions of no group get 0."""
        shape = [1] * like.dim()
        shape[0], shape[self.dim] = like.shape[0], like.shape[self.dim]
        return self.rows(weights, like.shape[0]).reshape(shape).to(like.dtype)


def each_sample(leading: int, samples: int) -> int:
    """Returns how much of a tensor's first dimension each sample has.

    Raises:
        MorphirError: if it does not hold whole samples.
    """
    if leading % samples:
        raise MorphirError(
            f"a tensor of leading extent {leading} does not hold whole samples of a batch of {samples}",
            hint="every activation that holds channels must have the samples along its first dimension",
        )
    return leading // samples


def gathered(sums: torch.Tensor, each: int, count: int, index: torch.Tensor | None) -> torch.Tensor:
    """Sums over each group's positions: ``[S * each, positions]`` to ``[S, groups]``.

    Args:
        sums: One number for each position.
        each: How much of the first dimension each sample has.
        count: How many positions each group has; how many groups there are, where there is an index.
        index: The group of each position, ``count`` for none; None where the groups stand in order.
    """
    if each > 1:
        sums = sums.reshape(-1, each, sums.shape[1]).sum([1])
    if index is not None:
        return sums.new_zeros(sums.shape[0], count + 1).index_add(1, index, sums)[:, :count]
    return sums if count == 1 else sums.reshape(sums.shape[0], -1, count).sum([2])
