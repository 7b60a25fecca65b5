"""The schedule of Algorithm 1, one slot per epoch, and the learning rate at any point of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from morphir.runtime.growing.config import GrowthConfig, LearningRateSchedule, ThetaSchedule

Stage = Literal["train", "learn", "final"]


@dataclass(frozen=True)
class Slot:
    """One epoch of a run.

    Attributes:
        index: Number of epochs before it, over the whole run; the data's epoch.
        stage: ``"train"`` (weights), ``"learn"`` (morphisms) or ``"final"`` (weights of the found
            architecture).
        phase: Counts from 1; the final training stands after the last.
        epoch: Counts from 0 within the stage.
        epochs: Number of epochs in the stage.
    """

    index: int
    stage: Stage
    phase: int
    epoch: int
    epochs: int

    @property
    def opens(self) -> bool:
        """Whether this is the stage's first epoch."""
        return self.epoch == 0

    @property
    def closes(self) -> bool:
        """Whether this is the stage's last epoch."""
        return self.epoch == self.epochs - 1

    def __str__(self) -> str:
        where = "final training" if self.stage == "final" else f"phase {self.phase}, {self.stage}"
        return f"epoch {self.index + 1} ({where} {self.epoch + 1}/{self.epochs})"


def plan(config: GrowthConfig) -> tuple[Slot, ...]:
    """Returns every epoch of a run, in order."""
    stages: list[tuple[Stage, int, int]] = []
    for phase in range(1, config.phases + 1):
        stages.append(("train", phase, config.train_epochs))
        stages.append(("learn", phase, config.learn_epochs))
    if config.final != "none":
        stages.append(("final", config.phases + 1, config.final_epochs))
    slots: list[Slot] = []
    for stage, phase, epochs in stages:
        slots += [Slot(len(slots) + epoch, stage, phase, epoch, epochs) for epoch in range(epochs)]
    return tuple(slots)


def learning_rate(config: GrowthConfig, slot: Slot, fraction: float, base: float | None = None) -> float:
    """Returns the learning rate of the weights.

    While growing, the schedule runs over the epochs of both kinds; the final training has a schedule of its
    own.

    Args:
        config: Says which schedules.
        slot: The epoch.
        fraction: How much of the epoch has passed, in [0, 1).
        base: The rate at the start; the configuration's where None.
    """
    if slot.stage == "final":
        start = base if base is not None and config.final_lr is None else config.final_lr or config.lr
        return start * _factor(config, config.final_lr_schedule, slot.epoch + fraction, slot.epochs)
    total = config.phases * (config.train_epochs + config.learn_epochs)
    start = config.lr if base is None else base
    return start * _factor(config, config.lr_schedule, slot.index + fraction, total)


def theta_rate(lr: float, schedule: ThetaSchedule, progress: float) -> float:
    """Returns theta's learning rate.

    Args:
        lr: The rate at the start.
        schedule: How it falls.
        progress: How much of the learning of one phase's morphisms has passed, in [0, 1].
    """
    return lr * (_cosine(progress) if schedule == "cosine" else 1.0)


def fraction(step: int, steps: int | None) -> float:
    """Returns how much of an epoch has passed, in [0, 1); 0 where its number of steps is not known."""
    return step / steps if steps else 0.0


def _factor(config: GrowthConfig, schedule: LearningRateSchedule, position: float, total: int) -> float:
    if schedule == "cosine":
        return _cosine(position / total)
    if schedule == "steps":
        ends = [milestone * total if milestone <= 1 else milestone for milestone in config.milestones]
        return config.gamma ** sum(position >= end for end in ends)
    return 1.0


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))
