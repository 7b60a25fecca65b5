"""``WriteReproducer``: the instrument that leaves a reproducer where a pipeline fails, and tries it first.

What a failing pipeline did is known best by its index maps: they are applied again, whatever made them.
Where a pass fails without a rewrite to blame, the passes themselves are stored.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.runtime.reproduction.encoding import ApplyMaps, ReproducerError
from morphir.runtime.reproduction.reproducer import (
    ExpectedError,
    Reproducer,
    check_names,
    current_versions,
)
from passes.base import Pass
from passes.instruments import Failure, Instrument, PendingRewrite, active

_LIMIT_SECONDS = 600


@dataclass
class WriteReproducer(Instrument):
    """Writes a reproducer for each pipeline that fails, runs it in a fresh process, and says what came of it.

    Attributes:
        folder: Holds one directory for each failure.
        spec: Says how the command line names the model; None to store its source.
        write: Takes what there is to say.
    """

    folder: str | PathLike[str]
    spec: Callable[[], Mapping[str, Any] | None] = lambda: None
    write: Callable[[str], object] = print
    _maps: list[ApplyMaps] = field(default_factory=list[ApplyMaps], repr=False)
    _random: torch.Tensor = field(default_factory=torch.get_rng_state, repr=False)
    _in_step: bool = field(default=False, repr=False)

    def before_pipeline(self, graph: Graph, pipeline: tuple[Pass, ...]) -> None:
        """Notes where the pipeline starts."""
        del graph, pipeline
        self._maps, self._random, self._in_step = [], torch.get_rng_state(), False

    def before_pass(self, name: str, graph: Graph) -> None:
        """Notes that a pass has made no rewrite yet."""
        del name, graph
        self._in_step = False

    def before_rewrite(self, rewrite: PendingRewrite) -> None:
        """Notes the index maps."""
        self._maps.append(ApplyMaps(rewrite.name, rewrite.maps, rewrite.morphisms))
        self._in_step = True

    def after_failure(self, failure: Failure) -> None:
        """Writes, tries and announces; a reproducer that cannot be written is announced as such."""
        place = self._free_place()
        expected = ExpectedError.of(failure.error)
        pipeline = tuple(self._maps) if self._in_step or not failure.pipeline else failure.pipeline
        reproducer = Reproducer(
            pipeline,
            check_names(active()),
            failure.verify_each,
            self._random,
            torch.initial_seed(),
            expected,
            current_versions(),
        )
        try:
            reproducer.write(place, failure.graph, self.spec())
        except MorphirError as error:
            self.write(f"no reproducer for {expected}\n  it cannot be written: {error}")
            return
        self.write(announce(place, expected))

    def _free_place(self) -> Path:
        number = 1
        while (place := Path(self.folder) / f"failure-{number:03d}").exists():
            number += 1
        return place


def announce(place: Path, expected: ExpectedError) -> str:
    """Runs a reproducer in a fresh process, and returns what to say of it."""
    try:
        found = run_in_fresh_process(place)
    except MorphirError as error:
        return f"reproducer {place} is written, but does not run again: {error}"
    if found is None:
        return (
            f"reproducer {place} is written, but does not reproduce: nothing fails in a fresh "
            f"process\n  expected {expected}"
        )
    if not found.is_same(expected):
        return (
            f"reproducer {place} is written, but fails otherwise in a fresh process: {found}\n  "
            f"expected {expected}"
        )
    return (
        f"reproducer {place}: fails again in a fresh process\n  {expected}\n  rerun it: morphir "
        f"reproduce {place}"
    )


def run_in_fresh_process(place: Path) -> ExpectedError | None:
    """Runs a reproducer in a Python of its own, with this one's import path.

    Raises:
        ReproducerError: if it does not get as far as the pipeline.
    """
    command = [sys.executable, "-m", "morphir", "reproduce", str(place), "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReproducerError(f"the fresh process did not end: {error}") from error
    try:
        found = json.loads(done.stdout)["found"]
    except (ValueError, KeyError) as error:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ReproducerError(f"the fresh process failed before the pipeline: {last}") from error
    return None if found is None else ExpectedError(**found)
