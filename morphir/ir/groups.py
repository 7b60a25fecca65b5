"""Which channel group lies at each position along a dimension."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import cast, overload

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


class Groups(Sequence[int]):
    """For every position along a dimension, the group's index in a space, or -1.

    Only the positions that hold a group are kept: many spaces share the channels of a concatenation.

    Args:
        extent: Number of positions.
        at: The positions that hold a group, in order.
        held: The group at each of these. Neither array must be written to afterwards.
    """

    def __init__(self, extent: int, at: Integers, held: Integers) -> None:
        self.extent, self.at, self.held = extent, at, held

    @staticmethod
    def of(groups: Sequence[int]) -> Groups:
        """Reads a group or -1 for every position."""
        numbers = np.asarray(groups, np.int64)
        at = np.flatnonzero(numbers >= 0)
        return Groups(len(numbers), at, numbers[at])

    def as_array(self) -> Integers:
        """Returns the group or -1 at every position."""
        numbers = np.full(self.extent, -1)
        numbers[self.at] = self.held
        return numbers

    def fit(self, width: int) -> bool:
        """Whether these are groups of a space of this width, each position named once and in order."""
        inside = self.at.size == 0 or (self.at[0] >= 0 and self.at[-1] < self.extent)
        ordered = bool((self.at[1:] > self.at[:-1]).all())
        return bool(inside and ordered and ((self.held >= 0) & (self.held < width)).all())

    def positions(self, group: int) -> Integers:
        """Returns the positions that hold a group."""
        return self.at[self.held == group]

    def added(self, copies: Sequence[int] | Integers) -> int:
        """Returns how many positions a rewrite adds; fewer than 0 where it removes some.

        Args:
            copies: How many copies of each group the rewrite makes.
        """
        return int(np.asarray(copies, np.int64)[self.held].sum()) - len(self.held)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Groups: ...
    def __getitem__(self, index: int | slice) -> int | Groups:
        if isinstance(index, slice):
            return Groups.of(tuple(self)[index])
        return int(self.as_array()[index])

    def __len__(self) -> int:
        return self.extent

    def __iter__(self) -> Iterator[int]:
        return iter(cast("list[int]", self.as_array().tolist()))

    def __contains__(self, group: object) -> bool:
        return group in self.held or (group == -1 and len(self.held) < self.extent)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Groups):
            return isinstance(other, tuple) and tuple(self) == other
        same = self.extent == other.extent and np.array_equal(self.at, other.at)
        return self is other or (same and np.array_equal(self.held, other.held))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(self))  # as that of an equal tuple

    def __repr__(self) -> str:
        return f"Groups.of({tuple(self)})"
