"""What a growth run tells its callbacks: one frozen dataclass per kind of event.

A callback is a function of one event; progress bars, metrics and reports attach here and nowhere else::

    def on_event(event: Event) -> None:
        match event:
            case PhaseEnded(record=record):
                print(record.phase, record.parameters)
            case _:
                pass
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from morphir.ir.graph import Graph
from morphir.ir.remarks import Remark
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.line_search import Trial
from morphir.runtime.growing.schedule import Slot, Stage
from morphir.runtime.growing.selection import Selection
from morphir.runtime.learning.learner import Score
from passes.transform import TransformResult


@dataclass(frozen=True)
class EpochRecord:
    """One epoch in numbers.

    Attributes:
        epoch: Counts from 1 over the whole run.
        stage: What was trained.
        phase: Counts from 1.
        loss: Mean loss of the epoch's training batches.
        lr: Learning rate at the epoch's end (theta's while learning morphisms).
        steps: Number of batches.
        seconds: Wall time, evaluation included.
        test_loss: Mean loss on the evaluation data; None without these, or while learning morphisms.
        test_error: Share of wrong classes in [0, 1]; None as above, or where targets are no classes.
    """

    epoch: int
    stage: Stage
    phase: int
    loss: float
    lr: float
    steps: int
    seconds: float
    test_loss: float | None = None
    test_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class PhaseRecord:
    """One growth phase, or the final training, in numbers.

    Attributes:
        phase: Counts from 1.
        stage: ``"grow"`` or ``"final"``.
        parameters: Number of parameters of the network that was trained.
        macs: Its multiply-accumulates for one sample.
        train_loss: Its mean loss in the last epoch of weight training; None if there was none.
        test_error: Its share of wrong classes at the end; None without evaluation data.
        splits: Number of splits applied at the phase's end.
        prunes: Number of prunes applied at the phase's end.
        theta_factor: Factor on the applied thetas; None where none was applied.
        seconds: Wall time of the phase.
        widths: Space name to number of groups, of the network that was trained.
        next_parameters: Number of parameters after the rewrite.
        next_macs: Multiply-accumulates after the rewrite.
        next_widths: Widths after the rewrite.
    """

    phase: int
    stage: str
    parameters: int
    macs: int
    train_loss: float | None
    test_error: float | None
    splits: int
    prunes: int
    theta_factor: float | None
    seconds: float
    widths: Mapping[str, int]
    next_parameters: int
    next_macs: int
    next_widths: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class RunStarted:
    """A run starts, or goes on; ``position`` epochs of ``slots`` are done."""

    graph: Graph
    config: GrowthConfig
    slots: tuple[Slot, ...]
    position: int


@dataclass(frozen=True)
class PhaseStarted:
    """The first epoch of a growth phase, or of the final training, is about to start."""

    phase: int
    stage: str


@dataclass(frozen=True)
class EpochStarted:
    """An epoch starts; ``steps`` is None where the data does not say how many batches it has."""

    slot: Slot
    steps: int | None


@dataclass(frozen=True)
class StepsDone:
    """So many steps of an epoch are done; comes every few steps, when the loss was looked at."""

    slot: Slot
    steps: int
    loss: float


@dataclass(frozen=True)
class EpochEnded:
    """An epoch ended."""

    slot: Slot
    record: EpochRecord


@dataclass(frozen=True)
class GraphRewritten:
    """The morphisms of a phase were applied to ``graph``; ``result`` is None where none paid.

    Theta was scaled by the factor of the best of ``trials``. ``scores`` are the learner's, of every
    candidate.
    """

    graph: Graph
    phase: int
    selection: Selection
    result: TransformResult | None
    trials: tuple[Trial, ...]
    remarks: tuple[Remark, ...]
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Reinitialised:
    """The found architecture starts from new weights; one remark for each tensor that keeps its values."""

    remarks: tuple[Remark, ...]


@dataclass(frozen=True)
class PhaseEnded:
    """A growth phase, or the final training, ended."""

    graph: Graph
    record: PhaseRecord


@dataclass(frozen=True)
class CheckpointWritten:
    """A checkpoint is on disk; ``position`` epochs are done."""

    path: Path
    position: int


@dataclass(frozen=True)
class Warned:
    """Something went wrong that the run survives."""

    message: str


@dataclass(frozen=True)
class RunEnded:
    """The run is over."""

    graph: Graph
    seconds: float


Event = (
    RunStarted
    | PhaseStarted
    | EpochStarted
    | StepsDone
    | EpochEnded
    | GraphRewritten
    | Reinitialised
    | PhaseEnded
    | CheckpointWritten
    | Warned
    | RunEnded
)
Callback = Callable[[Event], object]
