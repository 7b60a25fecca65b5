"""Many at once: what a growth run's selection is estimated to change, and what it then changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from morphir.ir.graph import Graph
from morphir.runtime.fidelity.learners import Problem
from morphir.runtime.growing.backtracking import Plan, planned, tried
from morphir.runtime.growing.learning import calibrate
from morphir.runtime.growing.line_search import Trial, scaled
from morphir.runtime.growing.rewriting import appraisal
from morphir.runtime.growing.selection import Selection
from morphir.runtime.growing.training import evaluate
from morphir.runtime.growing.validation import check_kept
from passes.instruments import unobserved
from passes.transform import transform

Samples = Sequence[tuple[Any, Any]]


@dataclass(frozen=True)
class Applied:
    """One way to apply a selection.

    Attributes:
        plan: Which.
        splits: Number of splits.
        prunes: Number of prunes.
        factor: Factor on every theta.
        predicted: Sum of the single morphisms' estimates, whatever the factor.
        joint: Joint estimate: change of the mean loss on a few training batches, all applied.
        truth: Change of the mean loss on the held-back batches.
        price: What the parameters and MACs that it adds are worth, in loss, at the configuration's prices.
    """

    plan: str
    splits: int
    prunes: int
    factor: float
    predicted: float
    joint: float
    truth: float
    price: float


def together(problem: Problem, trial: Samples, held_back: Samples) -> Iterator[Applied]:
    """Yields the whole selection as the paper applies it, with the best factor, and backtracked.

    Args:
        problem: The network, what theta is learned on, and the configuration of growth; it names no places.
        trial: Training batches that plans are tried on.
        held_back: What the truth is measured on.
    """
    graph, config = problem.graph, problem.config
    check_kept(graph, config)
    learner = problem.learner()
    problem.teach(learner)
    calibrate(learner, problem.batches(0), problem.placement, config.calibration_batches)
    scores = learner.scores()

    def loss_of(candidate: Graph, samples: Samples = trial) -> float:
        return evaluate(candidate, samples, problem.loss, problem.placement).loss

    judged, factors = appraisal(graph, config, loss_of), config.theta_factors
    selection = judged.fit(judged.select(scores, {}))

    def applied(name: str, plan: Plan) -> Applied:
        changed, morphisms = copy.deepcopy(graph), plan.selection.morphisms
        with unobserved():
            transform(changed, scaled(morphisms, plan.factor))
        return Applied(
            name,
            plan.selection.count("split"),
            plan.selection.count("prune"),
            plan.factor,
            _sum(plan.selection),
            loss_of(changed) - loss_of(graph),
            loss_of(changed, held_back) - loss_of(graph, held_back),
            judged.price_of(morphisms),
        )

    yield applied("all of it", Plan(selection, (Trial(1.0, math.nan),)))
    yield applied("best factor", tried(graph, selection, factors, loss_of))
    yield applied("backtracked", planned(graph, scores, config, judged))


def _sum(selection: Selection) -> float:
    return sum(score.delta_loss for score in selection.taken)
