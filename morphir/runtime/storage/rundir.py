"""The run directory: what a growth run leaves on disk. docs/run-directory.md says what each file is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite
from morphir.ir.printer import print_graph, print_operations
from morphir.ir.remarks import Remark
from morphir.morphisms.base import Morphism
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.learning.learner import Score
from morphir.runtime.storage.files import read_json, to_json, write_atomic
from morphir.runtime.storage.program import Program
from morphir.runtime.storage.scores import PhaseScores
from morphir.runtime.storage.widths import plot_widths

RUN_FILE = "run.json"
"""Of the command line: where model and data come from."""


class RunDirectory:
    """Names and writes the files of one run.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / RUN_FILE
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.history = path / "history"

    def create(self, config: GrowthConfig, graph: Graph) -> None:
        """Starts a run.

        Raises:
            MorphirError: if the directory holds something, or cannot be written. The command line's
                ``run.json`` may be there: it is written first.
        """
        if self.path.exists() and (not self.path.is_dir() or {*self.path.iterdir()} - {self.spec}):
            raise MorphirError(
                f"{self.path} is there and not empty",
                hint="continue the run in it with resume (--resume), or choose another directory",
            )
        data = {"config": config.model_dump(mode="json"), "network": fingerprint(graph)}
        write_atomic(self.config, to_json(data))
        Program.of(graph).write(self.path)
        self.write_ir(graph, 0)

    def reopen(self, config: GrowthConfig, graph: Graph) -> None:
        """Continues a run.

        Raises:
            MorphirError: if there is none, or it was started with another configuration or network.
        """
        if not self.config.exists():
            raise MorphirError(
                f"there is no run to resume in {self.path}", hint="leave resume out to start one"
            )
        saved = read_json(self.config)
        differences = GrowthConfig.of(saved["config"]).differences(config)
        if differences:
            listed = ", ".join(f"{k}: {was!r} then, {now!r} now" for k, (was, now) in differences.items())
            raise MorphirError(
                f"the run in {self.path} was started with another configuration ({listed})",
                hint="resume with the same configuration, or start a new run in another directory",
            )
        self.check_network(graph)

    def forget_start(self) -> None:
        """Clears the way for a run that was stopped before its first checkpoint to start again.

        Raises:
            MorphirError: if it had come further; then its checkpoints were removed.
        """
        if self.metrics.exists() and self.metrics.stat().st_size:
            raise MorphirError(
                f"the run in {self.path} had begun, but {self.checkpoints} holds no checkpoint",
                hint="put its checkpoints back, or start a new run in another directory",
            )
        shutil.rmtree(self.history, ignore_errors=True)

    def check_network(self, graph: Graph, model: str | None = None) -> None:
        """Raises :class:`MorphirError` unless a fresh graph is the network that the run was started from.

        Args:
            graph: A fresh trace.
            model: How the user names what it was traced of, for the message.
        """
        if read_json(self.config).get("network") == fingerprint(graph):
            return
        now = "" if model is None else f"; {model} builds another one now"
        raise MorphirError(
            f"the run in {self.path} was started from another network{now}",
            hint="undo what changed in the model since then, or start a new run in another directory",
        )

    def write_ir(self, graph: Graph, phase: int) -> None:
        """Writes the textual IR as it is after a phase; phase 0 is the seed."""
        write_atomic(self.path / "ir" / f"phase-{phase:02d}.txt", print_graph(graph).encode())

    def write_remarks(self, remarks: Sequence[Remark], phase: int) -> None:
        """Writes what was applied and missed in a phase."""
        data = [remark.to_json() for remark in remarks]
        write_atomic(self.path / "remarks" / f"phase-{phase:02d}.json", to_json(data))

    def write_scores(
        self,
        phase: int,
        scores: Iterable[Score],
        applied: Iterable[Morphism],
        prices: Mapping[str, float],
        rewrites: Iterable[Rewrite],
    ) -> None:
        """Writes the estimate of every morphism of a phase, which were applied, and by which rewrites."""
        numbers = (rewrite.number for rewrite in rewrites)
        PhaseScores.of(phase, scores, applied, prices, numbers).write(self.path)

    def write_widths(self, graph: Graph, widths: Sequence[Mapping[str, int]]) -> None:
        """Draws the widths of the seed and after each phase, of the spaces that are not wholly frozen."""
        free = {
            name for name, space in graph.spaces.items() if any(v.kind != "frozen" for v in space.verdicts)
        }
        drawn = [{name: width for name, width in point.items() if name in free} for point in widths]
        labels = ["seed", *(f"after phase {phase}" for phase in range(1, len(widths)))]
        write_atomic(self.path / "widths.svg", plot_widths(drawn, labels))


def read_config(path: Path) -> GrowthConfig:
    """Returns the configuration of the run in a directory.

    Raises:
        MorphirError: if there is none.
    """
    saved: Mapping[str, Any] = read_json(path / "config.json")
    return GrowthConfig.of(saved["config"])


def fingerprint(graph: Graph) -> str:
    """Returns a hash of what a network is made of: its tensors' names, shapes and types, and its program.

    The program counts because a changed one may well take the same weights, and compute something else with
    them. Source lines do not count: a file may be moved, and a comment be added.
    """
    state = {key: [list(tensor.shape), str(tensor.dtype)] for key, tensor in graph.state_dict().items()}
    whole = {"state": state, "program": print_operations(graph)}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
