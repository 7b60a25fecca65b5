"""``scores/phase-NN.json``: the learner's estimate of every morphism of a phase, and which were applied.

Columns instead of one object for each morphism: a phase of a wide network has thousands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from morphir.morphisms.base import Morphism
from morphir.runtime.learning.learner import Score
from morphir.runtime.storage.files import read_validated, to_compact_json, write_atomic


class MorphismScores(BaseModel):
    """The estimates of one kind of morphism in one space; an entry of each column for every candidate.

    Attributes:
        groups: The channel group, as it was numbered before the phase's rewrites.
        delta_loss: Estimated change of the mean loss; None where it is not finite.
        delta_parameters: Exact change of the number of parameters.
        delta_macs: Exact change of the multiply-accumulates for one sample.
        applied: The groups whose morphism was applied.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: tuple[int, ...]
    delta_loss: tuple[float | None, ...]
    delta_parameters: tuple[int, ...]
    delta_macs: tuple[int, ...]
    applied: tuple[int, ...]

    @staticmethod
    def of(scores: Sequence[Score], applied: Iterable[int]) -> MorphismScores:
        """Turns scores into columns."""
        return MorphismScores(
            groups=tuple(score.morphism.index for score in scores),
            delta_loss=tuple(
                score.delta_loss if math.isfinite(score.delta_loss) else None for score in scores
            ),
            delta_parameters=tuple(int(score.delta_parameters) for score in scores),
            delta_macs=tuple(int(score.delta_macs) for score in scores),
            applied=tuple(sorted(applied)),
        )


class PhaseScores(BaseModel):
    """What the file of one phase holds.

    Attributes:
        phase: Counts from 1.
        prices: Resource name to lambda, as the selection used them.
        rewrites: Numbers of the rewrites that the phase made.
        spaces: Space name to morphism kind (``"split"``, ``"prune"``) to its estimates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: int
    prices: dict[str, float]
    rewrites: tuple[int, ...]
    spaces: dict[str, dict[str, MorphismScores]]

    @staticmethod
    def of(
        phase: int,
        scores: Iterable[Score],
        applied: Iterable[Morphism],
        prices: Mapping[str, float],
        rewrites: Iterable[int],
    ) -> PhaseScores:
        """Gathers the scores of a phase by space and kind."""
        found: dict[tuple[str, str], list[Score]] = {}
        for score in scores:
            found.setdefault((score.morphism.space, score.morphism.kind), []).append(score)
        taken: dict[tuple[str, str], list[int]] = {}
        for morphism in applied:
            taken.setdefault((morphism.space, morphism.kind), []).append(morphism.index)
        spaces: dict[str, dict[str, MorphismScores]] = {}
        for (space, kind), members in found.items():
            columns = MorphismScores.of(members, taken.get((space, kind), ()))
            spaces.setdefault(space, {})[kind] = columns
        return PhaseScores(phase=phase, prices=dict(prices), rewrites=tuple(rewrites), spaces=spaces)

    def write(self, directory: Path) -> None:
        """Writes the file into a run directory."""
        write_atomic(scores_path(directory, self.phase), to_compact_json(self.model_dump(mode="json")))


def scores_path(directory: Path, phase: int) -> Path:
    """Returns where a run directory keeps the scores of a phase."""
    return directory / "scores" / f"phase-{phase:02d}.json"


def read_scores(directory: Path, phase: int) -> PhaseScores:
    """Reads the scores of one phase.

    Raises:
        StorageError: if they are not there, or damaged.
    """
    return read_validated(scores_path(directory, phase), PhaseScores)
