"""Reads a run directory, finished or not: only what ``metrics.jsonl`` says has ended is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from morphir.errors import MorphirError
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.events import EpochRecord, PhaseRecord
from morphir.runtime.growing.schedule import plan
from morphir.runtime.history.action import Action
from morphir.runtime.history.store import HistoryStore
from morphir.runtime.storage.files import StorageError, read_json
from morphir.runtime.storage.metrics import read_metrics
from morphir.runtime.storage.program import PROGRAM_FILE, Program, read_program
from morphir.runtime.storage.rundir import read_config
from morphir.runtime.storage.scores import PhaseScores, read_scores, scores_path

_Record = TypeVar("_Record")
_EPOCHS, _PHASES = TypeAdapter(list[EpochRecord]), TypeAdapter(list[PhaseRecord])
_REMARKS = TypeAdapter(list[dict[str, str | int | None]])


@dataclass(frozen=True)
class RunFiles:
    """What the files of a run say.

    Attributes:
        path: The run directory.
        origin: ``run.json``: where model and data come from; empty for runs that the command line did not
            start.
        config: The run's options.
        epochs: Every epoch that ended.
        phases: Every phase that ended, the final training among them.
        program: The traced program.
        rewrites: Every rewrite so far, as the run's history has it.
    """

    path: Path
    origin: dict[str, Any]
    config: GrowthConfig
    epochs: tuple[EpochRecord, ...]
    phases: tuple[PhaseRecord, ...]
    program: Program
    rewrites: tuple[Action, ...]

    @property
    def grown(self) -> tuple[PhaseRecord, ...]:
        """The phases that ended with a rewrite, or could have."""
        return tuple(phase for phase in self.phases if phase.stage == "grow")

    @property
    def planned_epochs(self) -> int:
        """Number of epochs that the run has when it is finished."""
        return len(plan(self.config))

    def ir(self, phase: int) -> list[str]:
        """Returns the lines of the textual IR after a phase; phase 0 is the seed."""
        path = self.path / "ir" / f"phase-{phase:02d}.txt"
        return _reading(path, Path.read_text).splitlines()

    def scores(self, phase: int) -> PhaseScores:
        """Returns the estimates of a phase."""
        path = scores_path(self.path, phase)
        if not path.exists():
            raise _from_an_older_version(path)
        return read_scores(self.path, phase)

    def remarks(self, phase: int) -> list[dict[str, Any]]:
        """Returns the remarks of a phase, as :meth:`Remark.to_json` wrote them."""
        path = self.path / "remarks" / f"phase-{phase:02d}.json"
        return _validated(path, _REMARKS, read_json(path))


def read_run_files(path: Path) -> RunFiles:
    """Reads a run directory.

    Raises:
        MorphirError: if it is none, a file is damaged, or it was written before MorphIR kept what a report
            needs.
    """
    if not (path / "config.json").is_file():
        raise MorphirError(
            f"there is no run in {path}: it has no config.json",
            hint="name a directory that 'morphir grow --out' or morphir.grow(out=...) made",
        )
    if not (path / PROGRAM_FILE).exists():
        raise _from_an_older_version(path / PROGRAM_FILE)
    metrics = path / "metrics.jsonl"
    lines = _reading(metrics, read_metrics) if metrics.exists() else []
    origin, history = path / "run.json", path / "history"
    if not HistoryStore.is_one(history):
        raise _from_an_older_version(history)
    return RunFiles(
        path,
        read_json(origin) if origin.exists() else {},
        read_config(path),
        tuple(_validated(metrics, _EPOCHS, _of_kind(lines, "epoch"))),
        tuple(_validated(metrics, _PHASES, _of_kind(lines, "phase"))),
        read_program(path),
        tuple(action for action in HistoryStore.read(history).actions if action.rewrite),
    )


def _of_kind(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [{key: line[key] for key in line if key != "kind"} for line in lines if line.get("kind") == kind]


def _validated(path: Path, of: TypeAdapter[_Record], data: Any) -> _Record:
    try:
        return of.validate_python(data)
    except ValidationError as error:
        raise StorageError(f"{path} is damaged: {error}") from error


def _reading(path: Path, read: Callable[[Path], _Record]) -> _Record:
    try:
        return read(path)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def _from_an_older_version(missing: Path) -> MorphirError:
    return MorphirError(
        f"{missing} is missing, which a report needs",
        hint="runs of earlier versions of MorphIR do not have it; start the run again",
    )
