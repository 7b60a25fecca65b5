"""One epoch of a growth run, with what opens and closes a stage: a learner, a rewrite, new weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import optim

from morphir.analysis.cost import Cost, cost
from morphir.ir.graph import Graph
from morphir.runtime.growing.events import (
    EpochEnded,
    EpochRecord,
    EpochStarted,
    GraphRewritten,
    PhaseEnded,
    PhaseRecord,
    PhaseStarted,
    Reinitialised,
    StepsDone,
)
from morphir.runtime.growing.learning import calibrate, learn_epoch
from morphir.runtime.growing.line_search import best
from morphir.runtime.growing.recalibration import recalibrate
from morphir.runtime.growing.reinitialise import reinitialise
from morphir.runtime.growing.rewriting import rewrite_graph, widths
from morphir.runtime.growing.run_state import Job, RunState, learner_of_phase, save_state
from morphir.runtime.growing.schedule import Slot, fraction, learning_rate
from morphir.runtime.growing.training import Batches, LossMeter, count_steps, evaluate, train_epoch


@dataclass(frozen=True)
class _Size:
    """A network's size at one moment."""

    cost: Cost
    widths: dict[str, int]

    @staticmethod
    def of(graph: Graph) -> _Size:
        return _Size(cost(graph), widths(graph))


def run_epoch(job: Job, state: RunState, slot: Slot) -> None:
    """Runs one epoch, writes its line and its checkpoint; after a phase's last one the graph is rewritten.

    Raises:
        NonFiniteLossError: if a loss is not finite; the checkpoint of the epoch before stays.
        StorageError: if the disk is full.
    """
    start = time.perf_counter()
    set_epoch(job.train_data, slot.index)
    if slot.opens:
        _open_stage(job, state, slot)
    record = _STAGES[slot.stage](job, state, slot)
    record = replace(record, seconds=time.perf_counter() - start)
    if state.metrics is not None:
        state.metrics.append("epoch", record.to_json())
    job.emit(EpochEnded(slot, record))
    _close_epoch(job, state, slot, start)
    state.position = slot.index + 1
    save_state(job, state)


def set_epoch(data: Batches, epoch: int) -> None:
    """Tells a loader, or its sampler, which epoch comes."""
    for owner in (data, getattr(data, "sampler", None)):
        chooser: Callable[[int], object] | None = getattr(owner, "set_epoch", None)
        if chooser is not None:
            chooser(epoch)


def _open_stage(job: Job, state: RunState, slot: Slot) -> None:
    first = slot.stage == "train" or (slot.stage == "learn" and job.config.train_epochs == 0)
    if first or slot.stage == "final":
        job.emit(PhaseStarted(slot.phase, "final" if slot.stage == "final" else "grow"))
    if slot.stage == "learn":
        recalibrate(job.graph, job.train_data, job.placement, job.config.recalibration_batches)
        state.learner = learner_of_phase(job, slot)
    if slot.stage == "final" and job.config.final == "retrain":
        _start_anew(job, state.optimizer)


def _start_anew(job: Job, optimizer: optim.Optimizer) -> None:
    """New weights, and an optimizer that has seen nothing yet."""
    remarks = reinitialise(job.graph, job.config.seed, job.initialise)
    optimizer.state.clear()
    job.emit(Reinitialised(remarks))


def _meter(job: Job, slot: Slot) -> LossMeter:
    def report(steps: int, loss: float) -> None:
        job.emit(StepsDone(slot, steps, loss))

    return LossMeter(str(slot), job.config.check_every, report)


def _train(job: Job, state: RunState, slot: Slot) -> EpochRecord:
    """One epoch of weight training, and its test error."""
    steps = count_steps(job.train_data)
    groups = state.optimizer.param_groups

    def set_rate(step: int) -> None:
        for group in groups:
            group["lr"] = learning_rate(job.config, slot, fraction(step, steps), group["initial_lr"])

    job.emit(EpochStarted(slot, steps))
    meter = _meter(job, slot)
    train_epoch(job.graph, job.train_data, job.loss, state.optimizer, job.placement, meter, set_rate)
    state.train_loss = meter.mean()
    rate = float(groups[0]["lr"])
    record = EpochRecord(slot.index + 1, slot.stage, slot.phase, state.train_loss, rate, meter.steps, 0.0)
    if job.eval_data is None:
        return record
    found = evaluate(job.graph, job.eval_data, job.loss, job.placement)
    found.check_finite(str(slot))
    state.test_error = found.error
    return replace(record, test_loss=found.loss, test_error=found.error)


def _learn(job: Job, state: RunState, slot: Slot) -> EpochRecord:
    """One epoch of morphism learning; the weights stay as they are."""
    assert state.learner is not None
    limit = job.config.learn_steps
    job.emit(EpochStarted(slot, count_steps(job.train_data, limit)))
    meter = _meter(job, slot)
    learn_epoch(
        state.learner,
        job.train_data,
        job.config,
        job.placement,
        meter,
        epoch=slot.epoch,
        epochs=slot.epochs,
        limit=limit,
    )
    rate = state.learner.lr
    return EpochRecord(slot.index + 1, slot.stage, slot.phase, meter.mean(), rate, meter.steps, 0.0)


_STAGES: dict[str, Callable[[Job, RunState, Slot], EpochRecord]] = {
    "train": _train,
    "learn": _learn,
    "final": _train,
}


def _close_epoch(job: Job, state: RunState, slot: Slot, start: float) -> None:
    """After a phase's last epoch: the rewrite, and the phase's record."""
    size = _Size.of(job.graph)
    event = _rewrite(job, state, slot) if slot.stage == "learn" and slot.closes else None
    state.seconds += time.perf_counter() - start
    if slot.stage == "train" or not slot.closes:
        return
    record = _phase_record(job, state, slot, size, event)
    state.phases.append(record)
    state.seconds, state.train_loss, state.test_error = 0.0, None, None
    if state.metrics is not None:
        state.metrics.append("phase", record.to_json())
    if job.directory is not None:
        grown = [phase.widths for phase in state.phases if phase.stage == "grow"]
        job.directory.write_widths(job.graph, [*grown, record.next_widths])
    job.emit(PhaseEnded(job.graph, record))


def _rewrite(job: Job, state: RunState, slot: Slot) -> GraphRewritten:
    """Applies what the learner found, with its scores calibrated."""
    assert state.learner is not None
    calibrate(state.learner, job.train_data, job.placement, job.config.calibration_batches)
    earlier = len(job.graph.history)
    if state.recorder is not None:
        state.recorder.phase = slot.phase
    event = rewrite_graph(job, state.learner, state.optimizer, slot.phase)
    state.learner = None
    if job.directory is not None:
        job.directory.write_ir(job.graph, slot.phase)
        job.directory.write_remarks(event.remarks, slot.phase)
        applied, made = event.selection.morphisms, job.graph.history[earlier:]
        job.directory.write_scores(slot.phase, event.scores, applied, job.config.prices, made)
    job.emit(event)
    return event


def _phase_record(
    job: Job, state: RunState, slot: Slot, size: _Size, event: GraphRewritten | None
) -> PhaseRecord:
    after = _Size.of(job.graph)
    return PhaseRecord(
        phase=slot.phase,
        stage="final" if slot.stage == "final" else "grow",
        parameters=size.cost.parameters,
        macs=size.cost.macs,
        train_loss=state.train_loss,
        test_error=state.test_error,
        splits=0 if event is None else event.selection.count("split"),
        prunes=0 if event is None else event.selection.count("prune"),
        theta_factor=best(event.trials).factor if event is not None and event.trials else None,
        seconds=state.seconds,
        widths=size.widths,
        next_parameters=after.cost.parameters,
        next_macs=after.cost.macs,
        next_widths=after.widths,
    )
