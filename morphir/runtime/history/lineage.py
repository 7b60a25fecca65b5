"""Where a channel group comes from: its index followed back through the index maps of its space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from morphir.runtime.history.action import Action

_WORDS = {1: "split (+) of", -1: "split (-) of", 0: "kept from"}


@dataclass(frozen=True)
class Ancestor:
    """One rewrite's part in a channel group's life.

    Attributes:
        index: The group after the rewrite.
        parent: The group that it comes from, before it.
        sign: Sign of theta: +1 or -1 for the halves of a split, 0 for a group that was kept.
        scale: Factor on the consumers' columns.
        action: Number of the action.
        rewrite: Number of the rewrite.
        phase: Of the growth run, if it was one.
    """

    index: int
    parent: int
    sign: int
    scale: float
    action: int
    rewrite: int
    phase: int | None

    @property
    def is_change(self) -> bool:
        """Whether the rewrite did more to the group than to number it."""
        return self.sign != 0 or self.scale != 1.0

    def __str__(self) -> str:
        phase = "" if self.phase is None else f" in phase {self.phase}"
        return f"channel {self.index}: {_WORDS[self.sign]} {self.parent}{phase}, rewrite {self.rewrite}"


def lineage(actions: Sequence[Action], space: str, index: int) -> tuple[Ancestor, ...]:
    """Returns every rewrite of a group's space, latest first.

    Args:
        actions: All actions up to the point at which the group has this index.
        space: Name of its space.
        index: The group.
    """
    return tuple(_ancestors(actions, space, index))


def _ancestors(actions: Sequence[Action], space: str, index: int) -> Iterator[Ancestor]:
    for action in reversed(actions):
        for index_map in () if action.rewrite is None else action.rewrite.maps:
            if index_map.space == space:
                assert action.rewrite is not None
                number, parent = action.rewrite.number, index_map.sources[index]
                sign, scale = index_map.signs[index], index_map.scales[index]
                yield Ancestor(index, parent, sign, scale, action.number, number, action.phase)
                index = parent
