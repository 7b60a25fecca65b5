"""A growth run: what it was given, how far it is, and how the second goes to and comes from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn, optim

from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.events import Callback, CheckpointWritten, Event, PhaseRecord, Warned
from morphir.runtime.growing.learning import new_learner
from morphir.runtime.growing.randomness import random_state, restore_random_state
from morphir.runtime.growing.schedule import Slot, plan
from morphir.runtime.growing.training import Batches, Loss, Placement, count_steps
from morphir.runtime.history.recorder import RecordHistory
from morphir.runtime.learning.learner import Learner
from morphir.runtime.storage.checkpoint import Checkpoint, newest_checkpoint, write_checkpoint
from morphir.runtime.storage.metrics import MetricsFile
from morphir.runtime.storage.rundir import RunDirectory
from passes.transform import replay


@dataclass(frozen=True)
class Job:
    """What a run was given; it does not change.

    Attributes:
        graph: The network; the object stays the same while it grows.
        train_data: Batches to train and to learn morphisms on.
        loss: Of outputs and targets.
        config: The options.
        placement: Device, autocast, memory format.
        eval_data: Batches for the test error, if any.
        callbacks: Who is told what happens.
        directory: Where the run leaves its files, if anywhere.
        initialise: Makes new weights for the final training, after every module has reset its own.
        origin: How the command line names the model.
    """

    graph: Graph
    train_data: Batches
    loss: Loss
    config: GrowthConfig
    placement: Placement
    eval_data: Batches | None = None
    callbacks: tuple[Callback, ...] = ()
    directory: RunDirectory | None = None
    initialise: Callable[[nn.Module], object] | None = None
    origin: Mapping[str, Any] | None = None

    def emit(self, event: Event) -> None:
        """Tells every callback."""
        for callback in self.callbacks:
            callback(event)


@dataclass
class RunState:
    """How far a run is; a checkpoint holds all of it.

    Attributes:
        optimizer: Trains the weights.
        position: Number of epochs that are done.
        phases: The phases that ended.
        learner: The morphisms' learner, in the middle of learning them.
        train_loss: Of the current phase's last epoch of weight training.
        test_error: Of the same epoch.
        seconds: What the current phase took so far.
        metrics: The metrics file, if there is a run directory.
        recorder: Writes the history, if there is a run directory.
    """

    optimizer: optim.Optimizer
    position: int = 0
    phases: list[PhaseRecord] = field(default_factory=list[PhaseRecord])
    learner: Learner | None = None
    train_loss: float | None = None
    test_error: float | None = None
    seconds: float = 0.0
    metrics: MetricsFile | None = None
    recorder: RecordHistory | None = None


def new_optimizer(graph: Graph, config: GrowthConfig) -> optim.Optimizer:
    """Returns the SGD of the configuration, over all parameters of the graph."""
    return optim.SGD(
        graph.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def learner_of_phase(job: Job, slot: Slot) -> Learner:
    """Returns the learner of one phase's morphisms.

    Raises:
        CalibrationError: if it is to be calibrated later, and cannot be.
    """
    steps = count_steps(job.train_data, job.config.learn_steps)
    learner = new_learner(job.graph, job.loss, job.config, steps, seed=job.config.seed + slot.phase)
    if job.config.calibration_batches:
        learner.check_calibration()
    return learner


def save_state(job: Job, state: RunState) -> None:
    """Writes a checkpoint, if the run has a directory."""
    if job.directory is None:
        return
    checkpoint = Checkpoint(
        state.position,
        {
            "weights": job.graph.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "learner": None if state.learner is None else state.learner.state_dict(),
            "random": random_state(job.train_data, job.eval_data),
            "rewrites": [{"record": r.to_json(), "tensors": r.tensors()} for r in job.graph.history],
        },
        {
            "config": job.config.model_dump(mode="json"),
            "phases": [record.to_json() for record in state.phases],
            "train_loss": state.train_loss,
            "test_error": state.test_error,
            "seconds": state.seconds,
            "metrics_lines": state.metrics.lines if state.metrics else 0,
            "actions": state.recorder.count if state.recorder else 0,
        },
    )
    path = write_checkpoint(job.directory.checkpoints, checkpoint, job.config.keep_checkpoints)
    job.emit(CheckpointWritten(path, state.position))


def load_state(job: Job, directory: RunDirectory, optimizer: optim.Optimizer) -> RunState | None:
    """Brings a freshly traced graph, its optimizer and all random states to where the newest checkpoint was.

    Returns:
        How far the run is; None where it was stopped before its first checkpoint.

    Raises:
        MorphirError: if every checkpoint is damaged.
    """
    checkpoint, warnings = newest_checkpoint(directory.checkpoints)
    for warning in warnings:
        job.emit(Warned(warning))
    if checkpoint is None:
        return None
    sections, run = checkpoint.sections, checkpoint.run
    rewrites = [Rewrite.from_json(item["record"], item["tensors"]) for item in sections["rewrites"]]
    replay(job.graph, rewrites[len(job.graph.history) :], optimizer)
    job.graph.load_state_dict(sections["weights"])
    optimizer.load_state_dict(sections["optimizer"])
    state = RunState(
        optimizer,
        position=checkpoint.position,
        phases=[PhaseRecord(**record) for record in run["phases"]],
        learner=_load_learner(job, checkpoint.position, sections["learner"]),
        train_loss=run["train_loss"],
        test_error=run["test_error"],
        seconds=run["seconds"],
        metrics=MetricsFile(directory.metrics, run["metrics_lines"]),
        recorder=_load_recorder(job, directory, run),
    )
    restore_random_state(sections["random"], job.train_data, job.eval_data)
    return state


def _load_recorder(job: Job, directory: RunDirectory, run: Mapping[str, Any]) -> RecordHistory | None:
    if not run.get("actions"):
        job.emit(Warned(f"the run in {directory.path} has no history: another version started it"))
        return None
    return RecordHistory.resume(job.graph, directory.history, run["actions"])


def _load_learner(job: Job, position: int, saved: Any) -> Learner | None:
    if saved is None:
        return None
    learner = learner_of_phase(job, plan(job.config)[position])
    learner.load_state_dict(saved)
    return learner
