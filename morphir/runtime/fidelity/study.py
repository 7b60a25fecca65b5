"""The study: estimated against true changes of the loss, and what each way to learn theta truly gains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from morphir.errors import MorphirError
from morphir.morphisms.base import Morphism
from morphir.morphisms.prune import Prune
from morphir.runtime.fidelity.agreement import Agreement
from morphir.runtime.fidelity.estimates import CALIBRATED, Site, estimated_changes, site
from morphir.runtime.fidelity.learners import (
    PAPER,
    ExpandedNetwork,
    GaussNewton,
    PaperLearner,
    Place,
    Problem,
    RandomDirections,
    Splits,
    SteepestDescent,
    ThetaLearner,
)
from morphir.runtime.fidelity.truth import true_changes
from morphir.runtime.growing.training import Batches
from morphir.runtime.learning.calibration import CalibrationError

PRUNES = "prune"
"""Who "learned" the prunes, which have no theta."""


@dataclass(frozen=True)
class Measured:
    """One morphism: its true change of the loss, and its estimates.

    Attributes:
        learner: Who learned its theta, or :data:`PRUNES`.
        site: What it does, and where.
        truth: True change of the mean loss, by brute force.
        estimates: Name of the score to estimated change.
    """

    learner: str
    site: Site
    truth: float
    estimates: Mapping[str, float]

    @property
    def space(self) -> str:
        """The channel space."""
        return self.site[1]


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        learners: Terms that theta is learned against; :data:`PAPER` is the paper's own learner.
        scores: What changes are estimated with: names of
            :data:`~morphir.runtime.fidelity.estimates.SCORES`.
        baselines: Whether steepest descent, the expanded network and random directions are compared too.
        prunes: Whether prunes are measured.
        per_space: Most groups of a space, evenly spread; None is all.
        expanded_steps: Steps of each optimisation of an expanded network.
        calibrations: How often a calibrated score goes over the data for its factors.
    """

    learners: Sequence[str]
    scores: Sequence[str]
    baselines: bool = False
    prunes: bool = True
    per_space: int | None = None
    expanded_steps: int = 100
    calibrations: int = 4

    def run(
        self, problem: Problem, held_back: Batches, progress: Callable[[str], object] = print
    ) -> Iterator[Measured]:
        """Yields each measured morphism, learner by learner.

        Args:
            problem: The network, and what theta is learned on; all of the network where it names no places.
            held_back: What truth and estimates are measured on.
            progress: Called with a line for each part.

        Raises:
            MorphirError: if no group can be split, or if there are none but calibrated scores, and the
                network cannot be calibrated.
        """
        problem = replace(problem, places=self._places(problem))
        study = replace(self, scores=self._measurable(problem, progress))
        yield from study._run(problem, held_back, progress)

    def _run(
        self, problem: Problem, held_back: Batches, progress: Callable[[str], object]
    ) -> Iterator[Measured]:
        if self.prunes:
            prunes = [Prune(space, group) for space, group in problem.places]
            yield from self._measure(PRUNES, prunes, {}, problem, held_back, progress)
        first: Splits | None = None
        for learner in self._learners():
            start = time.perf_counter()
            splits = learner.learn(problem)
            progress(f"{learner.name}: learned {len(splits)} splits in {time.perf_counter() - start:.0f} s")
            first = first or splits
            yield from self._measure(
                learner.name, list(splits.values()), splits, problem, held_back, progress
            )
        if self.baselines and first:
            drawn = RandomDirections(first)
            splits = drawn.learn(replace(problem, places=list(first)))
            yield from self._measure(drawn.name, list(splits.values()), splits, problem, held_back, progress)

    def _measurable(self, problem: Problem, progress: Callable[[str], object]) -> Sequence[str]:
        """Returns the scores, without calibrated ones where the network cannot be calibrated; says so."""
        calibrated = [score for score in self.scores if score.startswith(CALIBRATED)]
        if not calibrated:
            return self.scores
        try:
            problem.learner(score_curvature="auto").check_calibration()
        except CalibrationError as error:
            left = [score for score in self.scores if score not in calibrated]
            if not left:
                raise
            progress(f"{', '.join(calibrated)}: left out, {error.message}")
            return left
        return self.scores

    def _learners(self) -> Iterator[ThetaLearner]:
        for name in self.learners:
            yield PaperLearner() if name == PAPER else GaussNewton(name)
        if self.baselines:
            yield SteepestDescent()
            yield ExpandedNetwork(self.expanded_steps)

    def _places(self, problem: Problem) -> list[Place]:
        spaces = problem.graph.spaces
        wanted = problem.places or [(name, i) for name, space in spaces.items() for i in range(space.width)]
        exact: dict[str, list[int]] = {}
        for name, group in wanted:
            if problem.graph.space(name).verdict(group).kind == "exact":
                exact.setdefault(name, []).append(group)
        if not exact:
            raise MorphirError(
                "no channel group of this network can be split",
                hint="morphir inspect says why, group by group",
            )
        return [(name, group) for name, groups in exact.items() for group in _spread(groups, self.per_space)]

    def _measure(
        self,
        name: str,
        morphisms: Sequence[Morphism],
        splits: Splits,
        problem: Problem,
        held_back: Batches,
        progress: Callable[[str], object],
    ) -> Iterator[Measured]:
        start = time.perf_counter()
        estimates = {
            score: estimated_changes(
                problem.graph,
                splits,
                held_back,
                problem.loss,
                score,
                problem.placement,
                problem.config,
                self.calibrations,
            )
            for score in self.scores
        }
        truth = true_changes(problem.graph, morphisms, held_back, problem.loss, problem.placement)
        for morphism, change in zip(morphisms, truth, strict=True):
            at = site(morphism)
            # What the learner refuses has no estimate.
            found = {score: values[at] for score, values in estimates.items() if at in values}
            yield Measured(name, at, change, found)
        seconds = time.perf_counter() - start
        progress(f"{name}: measured {len(morphisms)} morphisms in {seconds:.0f} s")


def agreement(measured: Sequence[Measured], score: str) -> Agreement:
    """Compares one score's estimates with the truth."""
    pairs = [(m.estimates[score], m.truth) for m in measured if score in m.estimates]
    return Agreement.of([estimate for estimate, _ in pairs], [truth for _, truth in pairs])


def by_space(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    """Gathers what was measured by channel space, in the order in which the spaces came."""
    found: dict[str, list[Measured]] = {}
    for item in measured:
        found.setdefault(item.space, []).append(item)
    return found


def _spread(groups: Sequence[int], most: int | None) -> list[int]:
    if most is None or len(groups) <= most:
        return list(groups)
    if most == 1:
        return [groups[len(groups) // 2]]
    return [groups[round(i * (len(groups) - 1) / (most - 1))] for i in range(most)]
