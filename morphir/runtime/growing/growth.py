"""``grow``: Algorithm 1 of the paper.

Train weights, learn morphisms, apply those that pay, repeat; then train what was found once more.
Built on :class:`Learner` and :func:`transform` alone, as a user's own loop would be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn, optim

from morphir.ir.graph import Graph, require_graph
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.epochs import run_epoch
from morphir.runtime.growing.events import Callback, PhaseRecord, RunEnded, RunStarted
from morphir.runtime.growing.progress import ProgressReporter
from morphir.runtime.growing.randomness import deterministic_algorithms, seed_everything
from morphir.runtime.growing.run_state import Job, RunState, load_state, new_optimizer, save_state
from morphir.runtime.growing.schedule import plan
from morphir.runtime.growing.training import Batches, Evaluation, Loss, Placement, evaluate, place
from morphir.runtime.growing.validation import (
    check_configuration,
    check_data,
    check_kept,
    check_resumable,
    checked_callbacks,
    resolve_device,
)
from morphir.runtime.history.recorder import RecordHistory
from morphir.runtime.storage.files import StorageError
from morphir.runtime.storage.metrics import MetricsFile
from morphir.runtime.storage.rundir import RunDirectory
from passes.instruments import instrumented
from passes.moments import check_optimizer


@dataclass(frozen=True)
class GrowthResult:
    """What a growth run made.

    Attributes:
        graph: The grown network; the same object that went in.
        optimizer: Owns every parameter of it.
        phases: One record per phase, and one for the final training.
        evaluation: The finished network on the evaluation data; None without these.
        directory: Where the run left its files, if anywhere.
    """

    graph: Graph
    optimizer: optim.Optimizer
    phases: tuple[PhaseRecord, ...]
    evaluation: Evaluation | None
    directory: Path | None


def grow(
    graph: Graph,
    train_data: Batches,
    loss: Loss,
    *,
    config: GrowthConfig | None = None,
    eval_data: Batches | None = None,
    optimizer: optim.Optimizer | None = None,
    callbacks: Iterable[Callback] = (),
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    initialise: Callable[[nn.Module], object] | None = None,
    quiet: bool = False,
    origin: Mapping[str, Any] | None = None,
) -> GrowthResult:
    """Grows a network in place.

    Args:
        graph: A traced network.
        train_data: Batches ``(inputs, targets)`` that can be iterated over again and again: a list, a torch
            ``DataLoader``, ``morphir.data``'s loader. ``set_epoch(epoch)`` is called before each epoch where
            there is one.
        loss: Of outputs and targets; per sample ``[N]``, or their mean.
        config: The options; the defaults where None.
        eval_data: Batches for the test error.
        optimizer: Trains the weights, in place of the configuration's SGD; built from ``graph.parameters()``.
        callbacks: Functions of one :data:`~morphir.runtime.growing.events.Event`.
        out: Directory for configuration, metrics, checkpoints and more; must be empty or not there yet.
        resume: Continue the run in ``out``, with a fresh trace of the same model. On a CPU the finished
            network is bit for bit that of an uninterrupted run.
        initialise: Makes new weights for the final training (``seeds`` have their own); else
            ``reset_parameters`` does.
        quiet: Show no progress.
        origin: How the command line names the model; the history in ``out`` then makes it of its name. Where
            None, the history holds the model's PyTorch source.

    Raises:
        MorphirError: if data, loss, optimizer, callbacks or device do not fit, the loss becomes NaN, or the
            disk is full; the last checkpoint stays.
    """
    require_graph(graph)
    check_configuration(config)
    if optimizer is not None:
        check_optimizer(optimizer, graph)
    told = checked_callbacks(callbacks)
    check_resumable(out, resume=resume)
    config = config or GrowthConfig.of({})
    check_kept(graph, config)
    device = resolve_device(config.device, graph.device)
    placement = Placement(device, config.amp, config.channels_last)
    with ProgressReporter(quiet=quiet) as progress:
        directory = None if out is None else RunDirectory(Path(out))
        job = Job(
            graph,
            train_data,
            loss,
            config,
            placement,
            eval_data,
            (progress, *told),
            directory,
            initialise,
            origin,
        )
        with deterministic_algorithms(config.deterministic):
            return _run(job, optimizer, resume=resume)


def _run(job: Job, optimizer: optim.Optimizer | None, *, resume: bool) -> GrowthResult:
    start = time.perf_counter()
    _place(job)
    state = _open(job, optimizer, resume=resume)
    slots = plan(job.config)
    job.emit(RunStarted(job.graph, job.config, slots, state.position))
    recorders = () if state.recorder is None else (state.recorder,)
    with instrumented(*recorders), _resumable():
        for slot in slots[state.position :]:
            run_epoch(job, state, slot)
    evaluation = None
    if job.eval_data is not None:
        evaluation = evaluate(job.graph, job.eval_data, job.loss, job.placement)
    job.emit(RunEnded(job.graph, time.perf_counter() - start))
    path = None if job.directory is None else job.directory.path
    return GrowthResult(job.graph, state.optimizer, tuple(state.phases), evaluation, path)


@contextmanager
def _resumable() -> Generator[None]:
    """Says of a failed write that nothing is lost: a run that has begun has a checkpoint."""
    try:
        yield
    except StorageError as error:
        hint = f"{error.hint or 'mend this'}, then resume: the last checkpoint is intact"
        raise StorageError(error.message, hint=hint) from error


def _place(job: Job) -> None:
    """Moves the graph, and tries the data on it."""
    place(job.graph, job.placement)
    per_sample = job.config.calibration_batches > 0
    check_data(job.graph, job.train_data, job.loss, job.placement, "training data", per_sample=per_sample)
    if job.eval_data is not None:
        check_data(job.graph, job.eval_data, job.loss, job.placement, "evaluation data")


def _open(job: Job, optimizer: optim.Optimizer | None, *, resume: bool) -> RunState:
    """Starts a run, or brings everything to where it was stopped."""
    optimizer = optimizer or new_optimizer(job.graph, job.config)
    directory = job.directory
    if directory is not None and resume:
        directory.reopen(job.config, job.graph)
        state = load_state(job, directory, optimizer)
        if state is not None:
            return state
        directory.forget_start()
    elif directory is not None:
        directory.create(job.config, job.graph)
    seed_everything(job.config.seed)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    state = RunState(optimizer)
    if directory is not None:
        state.metrics = MetricsFile(directory.metrics)
        state.recorder = RecordHistory.start(job.graph, directory.history, job.origin)
    save_state(job, state)
    return state
