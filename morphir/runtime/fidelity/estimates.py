"""Estimates of given morphisms on given data, with any curvature; nothing is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.morphisms.split import Split
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.learning import new_learner
from morphir.runtime.growing.training import Batches, Placement
from morphir.runtime.learning.model_pass import Loss

Site = tuple[str, str, int]
"""Kind of morphism, space, group."""


def site(morphism: Morphism) -> Site:
    """Returns what a morphism does, and where."""
    return morphism.kind, morphism.space, morphism.index


def estimated_changes(
    graph: Graph,
    splits: Mapping[tuple[str, int], Split],
    batches: Batches,
    loss: Loss,
    curvature: str,
    placement: Placement,
    config: GrowthConfig,
) -> dict[Site, float]:
    """Returns the estimate of each split, with its theta, and of each prune of the graph.

    Args:
        graph: The graph.
        splits: Space and group to the split; theta is 0 for others.
        batches: The data; every batch counts by its samples.
        loss: Of outputs and targets, one a sample.
        curvature: Name of the second-order term.
        placement: Device, autocast, memory format.
        config: The seed of the signs that a sampled curvature draws, and whether to compile.
    """
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
    return {site(score.morphism): score.delta_loss for score in learner.scores()}
