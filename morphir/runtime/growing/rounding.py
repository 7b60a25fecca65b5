"""Widths that are multiples of a number, as matrix units want them: what the last phase applies, rounded.

Each space goes to the nearer multiple. On the way up, prunes that were chosen are withdrawn, then groups are
split that were not; on the way down, splits are withdrawn, then groups pruned. The best are kept, or taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from morphir.ir.channels import ChannelSpace
from morphir.ir.graph import Graph
from morphir.ir.remarks import Remark
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.selection import Selection, left_out, net_gain
from morphir.runtime.learning.learner import Score


def rounded(
    graph: Graph, selection: Selection, scores: Iterable[Score], config: GrowthConfig, *, up: bool = True
) -> Selection:
    """Changes a selection so that every space's width, in channels, is a multiple of ``width_multiple``.

    Args:
        graph: What the selection is for.
        selection: What is to be applied.
        scores: Every candidate.
        config: The multiple, what may be done, the prices, the least width.
        up: Whether a space may get wider by it.

    Returns:
        The selection; with a remark ``width-multiple`` for each morphism that was withdrawn, and for each
        space whose width stays no multiple.
    """
    chosen = {id(score) for score in selection.taken}
    of_space: dict[str, list[Score]] = {name: [] for name in graph.spaces}
    for score in scores:
        of_space[score.morphism.space].append(score)
    taken: list[Score] = []
    remarks = [*selection.remarks]
    for name, candidates in of_space.items():
        own = [score for score in candidates if id(score) in chosen]
        if candidates:
            own = _Rounding(graph.space(name), own, candidates, config, up=up).run(remarks)
        taken += sorted(own, key=lambda score: -net_gain(score, config.prices))
    added = [score.morphism for score in taken if id(score) not in chosen]
    no_longer = {(morphism.space, morphism.index, morphism.kind) for morphism in added}
    kept = [r for r in remarks if (r.space, r.index, r.message.partition(":")[0]) not in no_longer]
    return Selection(tuple(taken), tuple(kept))


def channels_per_group(space: ChannelSpace) -> int | None:
    """Returns how many output channels of its producers a group holds; None where that is not one number."""
    counts: set[int] = set()
    for producer in space.producers:
        binding = space.binding(producer.parameter, producer.out_axis)
        assert binding is not None
        counts.update(np.bincount(binding.groups.held, minlength=space.width).tolist())
    return counts.pop() if len(counts) == 1 else None


class _Rounding:
    """One space's part of a selection."""

    def __init__(
        self,
        space: ChannelSpace,
        own: Sequence[Score],
        candidates: Sequence[Score],
        config: GrowthConfig,
        *,
        up: bool,
    ) -> None:
        self.space, self.own, self.config, self.up = space, list(own), config, up
        touched = {score.morphism.index for score in own}
        self.spare = [
            score
            for score in candidates
            if score.morphism.index not in touched and math.isfinite(score.delta_loss)
        ]

    def run(self, remarks: list[Remark]) -> list[Score]:
        """Returns what is applied to the space."""
        multiple, width = self.config.width_multiple, self.space.width
        width += self._count("split") - self._count("prune")
        channels = channels_per_group(self.space)
        if channels is None:
            remarks.append(self._stays("its groups hold different numbers of channels"))
            return self.own
        step = multiple // math.gcd(multiple, channels)
        over = width % step
        if not over:
            return self.own
        wider = self._moves("prune", "split", step - over) if self.up else None
        stays_wide_enough = width - over >= max(self.config.min_width, self.space.least)
        narrower = self._moves("split", "prune", over) if stays_wide_enough else None
        if wider is not None and (narrower is None or step - over <= over):
            return self._apply(*wider, remarks)
        if narrower is not None:
            return self._apply(*narrower, remarks)
        remarks.append(self._stays(f"{width * channels} channels, and too few of them may change"))
        return self.own

    def _count(self, kind: str) -> int:
        return sum(score.morphism.kind == kind for score in self.own)

    def _moves(self, withdrawn: str, added: str, count: int) -> tuple[list[Score], list[Score]] | None:
        """Returns what to withdraw, the worst first, and what to add, the best first; None for too few."""
        gone = sorted((s for s in self.own if s.morphism.kind == withdrawn), key=self._gain)[:count]
        allowed = {"split": self.config.splits, "prune": self.config.prunes}[added]
        spare = [score for score in self.spare if allowed and score.morphism.kind == added]
        new = sorted(spare, key=self._gain, reverse=True)[: count - len(gone)]
        return (gone, new) if len(gone) + len(new) == count else None

    def _gain(self, score: Score) -> float:
        return net_gain(score, self.config.prices)

    def _apply(self, gone: Sequence[Score], new: Sequence[Score], remarks: list[Remark]) -> list[Score]:
        message = f"withdrawn, for a width that is a multiple of {self.config.width_multiple}"
        remarks += [left_out(score, "width-multiple", message) for score in gone]
        withdrawn = set(map(id, gone))
        return [*(score for score in self.own if id(score) not in withdrawn), *new]

    def _stays(self, message: str) -> Remark:
        return Remark("missed", "width-multiple", message, self.space.name)
