"""A reproducer's directory: the graph before the failure, what was done to it, and the error to expect.

| file | what it is |
| --- | --- |
| ``origin.json`` (and ``model.py``) | how the model is made again: its name, or its source |
| ``reproducer.json`` | the pipeline, the checks, the seed, versions and the expected error |
| ``state.safetensors`` | parameters and buffers before the pipeline |
| ``pipeline.safetensors`` | tensors of the pipeline: thetas, batches |
| ``program.ir`` | the textual IR before the pipeline |
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch

from exporters.source.text import morphir_version
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.ir.printer import print_graph
from morphir.ir.state import named_state
from morphir.runtime.history.origin import Resolve, read_origin, write_origin
from morphir.runtime.history.preserving import VerifyOutputs
from morphir.runtime.history.state import replace_values
from morphir.runtime.reproduction.encoding import ReproducerError, decode, encode
from morphir.runtime.storage.files import read_json, read_tensors, to_json, write_atomic, write_tensors
from morphir.runtime.storage.packing import pack, unpack
from passes.base import Pass
from passes.instruments import Instrument, instrumented
from passes.instruments.observing import VerifyEach
from passes.manager import PassManager

_FILE = "reproducer.json"
_CHECKS: Mapping[str, type[Instrument]] = {"verify-each": VerifyEach, "verify-outputs": VerifyOutputs}


@dataclass(frozen=True)
class ExpectedError:
    """What fails, as far as it does not depend on where files lie.

    Attributes:
        kind: Name of the error's class.
        message: Its text.
        node: The node that it names.
        source: The user's line.
    """

    kind: str
    message: str
    node: str | None = None
    source: str | None = None

    @staticmethod
    def of(error: Exception) -> ExpectedError:
        """Describes an actual error."""
        if isinstance(error, MorphirError):
            return ExpectedError(type(error).__name__, error.message, error.node, error.source)
        return ExpectedError(type(error).__name__, str(error))

    def is_same(self, other: ExpectedError) -> bool:
        """Whether two errors are one: class, node and first line; numbers may differ in their last digits.

        Source that was exported with a reproducer has lines of its own, so they are not compared.
        """
        return replace(self, message=_words(self.message), source=None) == replace(
            other, message=_words(other.message), source=None
        )

    def __str__(self) -> str:
        first, *_ = self.message.splitlines() or [""]
        where = (
            "" if self.node is None else f" at %{self.node}" + (f" ({self.source})" if self.source else "")
        )
        return f"{self.kind}: {first}{where}"


def _words(message: str) -> str:
    first, *_ = message.splitlines() or [""]
    return re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", _rounded, first)


def _rounded(found: re.Match[str]) -> str:
    return found[0] if found[1] is None and found[2] is None else f"{float(found[0]):.1e}"


@dataclass(frozen=True)
class Reproducer:
    """What a reproducer's directory holds.

    Attributes:
        pipeline: The passes that fail.
        checks: Names of the verifying instruments that were at work.
        verify_each: Whether the pass manager verified after each pass.
        random: State of torch's CPU generator before the pipeline.
        seed: What that generator was seeded with.
        expected: What fails.
        versions: Of Python and of what computes.
    """

    pipeline: tuple[Pass, ...]
    checks: tuple[str, ...]
    verify_each: bool
    random: torch.Tensor
    seed: int
    expected: ExpectedError
    versions: Mapping[str, str]

    def write(self, folder: Path, graph: Graph, spec: Mapping[str, Any] | None) -> None:
        """Writes the directory.

        Args:
            folder: New, or empty.
            graph: The graph before the pipeline.
            spec: How the command line names its model; None to store its source.

        Raises:
            MorphirError: if a pass cannot be stored, or the model has no PyTorch source.
        """
        try:
            skeleton, tensors = pack({"passes": encode(self.pipeline), "random": self.random})
        except TypeError as error:
            raise ReproducerError(f"the pipeline cannot be stored: {error}") from error
        write_origin(folder, graph, spec)
        write_tensors(folder / "state.safetensors", named_state(graph))
        write_tensors(folder / "pipeline.safetensors", tensors)
        write_atomic(folder / "program.ir", print_graph(graph).encode())
        data = {name: getattr(self, name) for name in ("verify_each", "seed")}
        data |= {
            "checks": list(self.checks),
            "versions": dict(self.versions),
            "expected": vars(self.expected),
        }
        write_atomic(folder / _FILE, to_json({**data, "pipeline": skeleton}))

    @staticmethod
    def read(folder: Path) -> Reproducer:
        """Reads what :meth:`write` wrote, without the graph.

        Raises:
            MorphirError: if there is none, or it is damaged.
        """
        if not (folder / _FILE).is_file():
            raise ReproducerError(
                f"there is no reproducer in {folder}: it has no {_FILE}",
                hint="name a folder that --reproducer-dir wrote for one failure",
            )
        data = read_json(folder / _FILE)
        tensors = read_tensors(folder / "pipeline.safetensors")
        try:
            pipeline = unpack(data["pipeline"], tensors)
            return Reproducer(
                decode(pipeline["passes"]),
                tuple(data["checks"]),
                data["verify_each"],
                pipeline["random"],
                data["seed"],
                ExpectedError(**data["expected"]),
                data["versions"],
            )
        except (KeyError, TypeError) as error:
            raise ReproducerError(f"the reproducer in {folder} is damaged: {error}") from error

    def run(self, folder: Path, resolve: Resolve | None = None) -> ExpectedError | None:
        """Runs the pipeline again, and returns how it fails; None where it does not.

        Args:
            folder: Where it lies.
            resolve: Makes a graph of a model's name.

        Raises:
            MorphirError: if the model cannot be made any more.
        """
        graph = read_origin(folder, resolve)
        replace_values(graph, read_tensors(folder / "state.safetensors"))
        torch.set_rng_state(self.random)
        try:
            with instrumented(*(_CHECKS[name]() for name in self.checks)):
                PassManager(self.pipeline, self.verify_each).run(graph)
        except Exception as error:  # whatever fails is what is asked for
            return ExpectedError.of(error)
        return None


def current_versions() -> dict[str, str]:
    """Returns the versions of Python and of what computes."""
    return {
        "morphir": morphir_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
    }


def check_names(instruments: tuple[Instrument, ...]) -> tuple[str, ...]:
    """Returns the names of the verifying instruments among those at work."""
    return tuple(n for n, kind in _CHECKS.items() if any(isinstance(i, kind) for i in instruments))
