"""Theta's learner as a configuration describes it, its epochs, its calibration: growth's and fidelity's."""

from __future__ import annotations

from itertools import islice
from typing import Any

from morphir.ir.graph import Graph
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.schedule import fraction, theta_rate
from morphir.runtime.growing.training import Batches, Loss, LossMeter, Placement, count_steps
from morphir.runtime.learning.batches import batch_samples, in_batch, pair_of
from morphir.runtime.learning.learner import Learner


def new_learner(
    graph: Graph, loss: Loss, config: GrowthConfig, steps: int | None = None, **overrides: Any
) -> Learner:
    """Returns a learner with a configuration's options.

    Args:
        graph: What it learns the morphisms of; the spaces that the configuration keeps are left out.
        loss: Of outputs and targets.
        config: The options.
        steps: Number of steps in an epoch, if it is known; the scores' average depends on it.
        **overrides: Arguments of :class:`Learner` that are to be others.
    """
    options: dict[str, Any] = {
        "learn_curvature": config.learn_curvature,
        "score_curvature": config.score_curvature,
        "optimizer": config.theta_optimizer,
        "lr": config.theta_lr,
        "absolute_lr": config.theta_lr_absolute,
        "ema": score_momentum(config, steps),
        "init_scale": config.theta_scale,
        "spaces": [name for name in graph.spaces if not config.keeps(name)] if config.keep else None,
        "compile": config.compile,
        "seed": config.seed,
    }
    return Learner(graph, loss, **{**options, **overrides})


def score_momentum(config: GrowthConfig, steps: int | None) -> float:
    """Returns the weight of the newest batch in the scores' average.

    The paper's is (batch / dataset) / 2, which is one over twice the number of steps in an epoch.
    """
    return config.ema or 0.5 / max(steps or 50, 1)


def learn_epoch(
    learner: Learner,
    batches: Batches,
    config: GrowthConfig,
    placement: Placement,
    meter: LossMeter,
    *,
    epoch: int,
    epochs: int,
    limit: int | None = None,
) -> None:
    """Learns for one pass over the data; the weights stay as they are.

    Args:
        learner: Learns, at the rate that the configuration's schedule says.
        batches: Pairs of inputs and targets.
        config: Theta's rate, and how it falls.
        placement: Device, autocast.
        meter: Gets every step's loss.
        epoch: Counts from 0.
        epochs: For how many epochs the learner learns.
        limit: Most steps; None is all of the data.

    Raises:
        NonFiniteLossError: if a loss is not finite.
        BatchError: if a batch does not fit the model or the loss; names epoch and batch.
    """
    steps = count_steps(batches, limit)
    for step, batch in enumerate(islice(batches, limit)):
        progress = (epoch + fraction(step, steps)) / epochs
        learner.lr = theta_rate(config.theta_lr, config.theta_lr_schedule, progress)
        with in_batch(meter.next_batch), placement.autocast():
            inputs, targets = placement.move(pair_of(batch))
            result = learner.step(inputs, targets)
        meter.add(result.loss, batch_samples(inputs))


def calibrate(learner: Learner, batches: Batches, placement: Placement, limit: int | None) -> None:
    """Measures how far the scores' second-order terms are off, once theta is learned.

    Args:
        learner: The learner.
        batches: Pairs of inputs and targets.
        placement: The device.
        limit: Most batches; None is all of the data, and 0 does not open it.

    Raises:
        CalibrationError: if this cannot be measured, as where the loss function returns the batch's mean.
        BatchError: if a batch does not fit the model or the loss; names it.
    """
    for number, batch in enumerate(islice(batches, limit) if limit != 0 else (), start=1):
        with in_batch(f"batch {number} of the calibration"):
            inputs, targets = placement.move(pair_of(batch))
            learner.calibrate(inputs, targets)
