"""The interface that a row of the table of datasets has."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from morphir.data.dataset import Dataset


class Source(Protocol):
    """Loads one dataset, whole."""

    def __call__(self, *, data_dir: Path | None, download: bool, image_size: int | None) -> Dataset:
        """Load it; see `morphir.data.load` for the arguments."""
        ...
