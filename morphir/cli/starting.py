"""A new run's directory: empty, or with ``--force`` an old run's, which stays until the new one starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType

from morphir.cli.runs import is_run
from morphir.errors import MorphirError
from morphir.runtime.storage.files import cannot_write

_OF_A_RUN = frozenset(
    {
        *("run.json", "config.json", "metrics.jsonl", "program.json", "widths.svg", "report.html"),
        *("checkpoints", "history", "ir", "remarks", "scores"),
        *("network.py", "network.safetensors", "network.onnx", "__pycache__"),
    }
)


def check_free(out: Path, *, force: bool) -> None:
    """Says before anything is loaded that a directory is taken.

    Raises:
        MorphirError: if it holds anything; with ``force``, if it is no run, or holds what no run writes.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_run(out):
        raise MorphirError(f"{out} is there and not empty", hint="choose another --out")
    if not force:
        raise MorphirError(
            f"{out} is there and not empty",
            hint="continue the run in it with --resume, replace it with --force, or choose another --out",
        )
    others = sorted(entry.name for entry in out.iterdir() if not _is_of_a_run(entry.name))
    if others:
        raise MorphirError(
            f"{out} holds more than a run: {', '.join(others)}",
            hint="--force deletes the whole directory: move these elsewhere first, or choose another --out",
        )


def _is_of_a_run(name: str) -> bool:
    """Whether a run writes the entry, or leaves it where it is killed while writing."""
    whole = name[1:-4] if name.startswith(".") and name.endswith(".tmp") else name
    return whole in _OF_A_RUN or name.startswith(".export-")


class StartingRun:
    """The directory of a run that starts, as a context manager.

    An old run in it is moved aside, and deleted by :meth:`started`. Where the block ends without that, by
    an error or an interrupt, everything is as it was before.

    Args:
        path: The directory; absolute, because the working directory may be the old run.

    Attributes:
        has_started: Whether the new run can be resumed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.has_started = False
        self._aside = path.with_name(f"{path.name}.replaced")
        self._existed = path.exists()

    def __enter__(self) -> StartingRun:
        if not is_run(self.path):
            return self
        if self._aside.exists():
            raise MorphirError(
                f"{self._aside} is there: a run that was to replace {self.path} was killed before it started",
                hint=f"it is the old run: move it back to {self.path}, or delete it",
            )
        try:
            self.path.rename(self._aside)
        except OSError as error:
            raise cannot_write(self._aside, error) from error
        return self

    def started(self) -> None:
        """Deletes the old run."""
        self.has_started = True
        shutil.rmtree(self._aside, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.has_started:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        if self._aside.exists():
            self._aside.rename(self.path)
        elif self._existed:
            self.path.mkdir()
