"""``metrics.jsonl``: one JSON object per epoch and per phase, in the order in which they ended.

A checkpoint notes how many lines there are; a resumed run drops the lines after that, so that the finished
file is that of an uninterrupted run, but for seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morphir.runtime.storage.files import cannot_write, write_atomic


class MetricsFile:
    """Appends to a file of JSON lines.

    Args:
        path: The file; made with the first line.
        lines: How many of the lines that are there to keep.
    """

    def __init__(self, path: Path, lines: int = 0) -> None:
        self.path = path
        kept = path.read_bytes().splitlines(keepends=True)[:lines] if path.exists() else []
        kept = [line for line in kept if line.endswith(b"\n")]
        self.lines = len(kept)
        write_atomic(path, b"".join(kept))

    def append(self, kind: str, values: Mapping[str, Any]) -> None:
        """Writes one line, ``{"kind": kind, ...}``, and waits until the disk has it.

        Raises:
            StorageError: if the disk is full.
        """
        line = json.dumps({"kind": kind, **values}, allow_nan=False) + "\n"
        try:
            with self.path.open("a") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.lines += 1


def read_metrics(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Reads the lines of a metrics file, all or of one kind (``"epoch"``, ``"phase"``).

    A last line that a running process has not finished yet is left out.
    """
    whole = path.read_text().rpartition("\n")[0]
    lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
    return [line for line in lines if kind is None or line["kind"] == kind]
