"""Estimates of given morphisms on given data, with any curvature, calibrated or not; nothing is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from morphir.errors import MorphirError, did_you_mean
from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.morphisms.split import Split
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.learning import calibrate, new_learner
from morphir.runtime.growing.training import Batches, Placement
from morphir.runtime.learning.curvature import BENT, CURVATURES
from morphir.runtime.learning.loss_check import Loss

Site = tuple[str, str, int]
"""Kind of morphism, space, group."""
CALIBRATED = "calibrated-"
"""Before a curvature's name: its second-order term times what is measured on the same data."""
SCORES = (*CURVATURES, *(f"{CALIBRATED}{name}" for name in BENT))
"""Names of all scores."""


def check_score(name: str) -> str:
    """Returns a score's name.

    Raises:
        MorphirError: if there is none of that name; the hint lists them.
    """
    if name not in SCORES:
        hint = f"there are: {', '.join(SCORES)}"
        raise MorphirError(f"there is no score {name!r}", hint=f"{did_you_mean(name, SCORES)}{hint}")
    return name


def site(morphism: Morphism) -> Site:
    """Returns what a morphism does, and where."""
    return morphism.kind, morphism.space, morphism.index


def estimated_changes(
    graph: Graph,
    splits: Mapping[tuple[str, int], Split],
    batches: Batches,
    loss: Loss,
    score: str,
    placement: Placement,
    config: GrowthConfig,
    calibrations: int = 4,
) -> dict[Site, float]:
    """Returns the estimate of each split, with its theta, and of each prune of the graph.

    Args:
        graph: The graph.
        splits: Space and group to the split; theta is 0 for others.
        batches: The data; every batch counts by its samples.
        loss: Of outputs and targets, one a sample.
        score: One of :data:`SCORES`.
        placement: Device, autocast, memory format.
        config: The seed of the signs that a sampled curvature draws, and whether to compile.
        calibrations: How often a calibrated score goes over the data for its factors.
    """
    curvature = check_score(score).removeprefix(CALIBRATED)
    still: dict[str, Any] = {"lr": 0.0, "init_scale": 0.0, "spaces": None}
    learner = new_learner(graph, loss, config, learn_curvature="auto", score_curvature=curvature, **still)
    for space, thetas in learner.thetas.items():
        for theta in thetas.values():
            for group in range(len(theta.rows)):
                given = (splits[space, group].theta or {}) if (space, group) in splits else {}
                if theta.parameter in given:
                    theta.put(group, given[theta.parameter])
    samples = 0
    for inputs, targets in batches:
        samples += len(targets)
        # A momentum that falls like this makes the moving average the mean over all samples so far.
        learner.ema = len(targets) / samples
        with placement.autocast():
            learner.step(placement.move(inputs), placement.move(targets))
    for _ in range(calibrations if score.startswith(CALIBRATED) else 0):
        calibrate(learner, batches, placement, None)
    return {site(found.morphism): found.delta_loss for found in learner.scores()}
