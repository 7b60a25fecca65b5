"""Progress on the terminal: bars for epochs and steps, and a line per phase; plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from morphir.runtime.growing.events import (
    EpochEnded,
    EpochStarted,
    Event,
    PhaseEnded,
    PhaseRecord,
    RunStarted,
    StepsDone,
    Warned,
)
from morphir.runtime.growing.schedule import Slot

_HEADER = (
    f"{'phase':>6} {'parameters':>11} {'MACs':>14} {'train loss':>10} "
    f"{'test error':>10} {'splits':>6} {'prunes':>6} {'seconds':>8}"
)


class ProgressReporter:
    """A callback that shows a run as it goes, on standard error.

    Use it as a context manager, so that the bars leave the terminal in order whatever happens inside.

    Args:
        quiet: Show warnings alone.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            transient=True,
        )
        self._epochs: TaskID | None = None
        self._steps: TaskID | None = None

    def __enter__(self) -> ProgressReporter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        match event:
            case Warned(message=message):
                self._line(f"warning: {message}")
            case _ if self._quiet:
                pass
            case RunStarted(slots=slots, position=position):
                self._epochs = self._progress.add_task(
                    "epochs", total=len(slots), completed=position, note=""
                )
                if position:
                    self._line(f"resuming after {position} of {len(slots)} epochs")
                self._line(_HEADER)
            case EpochStarted(slot=slot, steps=steps):
                self._start_epoch(slot, steps)
            case StepsDone(steps=steps, loss=loss) if self._steps is not None:
                self._progress.update(self._steps, completed=steps, note=f"loss {loss:.4f}")
            case EpochEnded(slot=slot) if self._epochs is not None:
                self._progress.update(self._epochs, completed=slot.index + 1)
            case PhaseEnded(record=record):
                self._line(phase_line(record))
            case _:
                pass

    def _start_epoch(self, slot: Slot, steps: int | None) -> None:
        if self._steps is not None:
            self._progress.remove_task(self._steps)
        where = "final training" if slot.stage == "final" else f"phase {slot.phase} {slot.stage}"
        self._steps = self._progress.add_task(
            f"{where} {slot.epoch + 1}/{slot.epochs}", total=steps or 0, note=""
        )

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def phase_line(record: PhaseRecord) -> str:
    """Returns a phase as one line of the table."""
    name = "final" if record.stage == "final" else str(record.phase)
    loss = "-" if record.train_loss is None else f"{record.train_loss:.4f}"
    error = "-" if record.test_error is None else f"{record.test_error:.2%}"
    return (
        f"{name:>6} {record.parameters:>11,} {record.macs:>14,} {loss:>10} "
        f"{error:>10} {record.splits:>6} {record.prunes:>6} {record.seconds:>8.1f}"
    )
