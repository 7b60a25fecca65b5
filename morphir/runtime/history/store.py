"""A history's files: ``actions.jsonl``, one safetensors file for each action that has tensors, keyframes.

``000000.safetensors`` holds all tensors of the start; ``NNNNNN.safetensors`` the thetas of a rewrite, or the
tensors whose values changed otherwise; ``keyframe-NNNNNN.safetensors`` all tensors at a point, so that a far
one is near. Tensors are read when a point asks for them, so that opening costs the lines alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from morphir.runtime.history.action import Action
from morphir.runtime.history.state import HistoryError
from morphir.runtime.storage.files import cannot_write, read_tensors, write_atomic, write_tensors

ACTIONS = "actions.jsonl"


class HistoryStore:
    """Reads and writes the files of one history.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.actions: list[Action] = []

    @staticmethod
    def is_one(folder: Path) -> bool:
        """Whether a folder is a history."""
        return (folder / ACTIONS).is_file()

    @staticmethod
    def of(folder: Path) -> Path:
        """Returns where a folder's history lies: there, or, in a run directory, in ``history``."""
        return folder if HistoryStore.is_one(folder) else folder / "history"

    @staticmethod
    def read(folder: Path) -> HistoryStore:
        """Reads the actions, without their tensors.

        Raises:
            HistoryError: if there are none, or a line is damaged.
        """
        store, path = HistoryStore(folder), folder / ACTIONS
        if not path.is_file():
            raise HistoryError(
                f"there is no history in {folder}", hint="'morphir grow' and morphir.debug.recorded make one"
            )
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A killed writer leaves half a line, the last.
        whole = [line for line in lines if line.endswith("\n")]
        for at, line in enumerate(whole, 1):
            try:
                store.actions.append(Action.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise HistoryError(f"{path} is damaged in line {at}: {error}") from error
            if store.actions[-1].number != at - 1:
                raise HistoryError(f"{path} is damaged: line {at} is of action {store.actions[-1].number}")
        if not store.actions:
            raise HistoryError(f"{path} is damaged: it has no start")
        return store

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    def append(self, actions: Sequence[Action]) -> None:
        """Adds lines, and waits until the disk has them.

        Raises:
            StorageError: if the disk is full.
        """
        path = self.folder / ACTIONS
        try:
            with path.open("ab") as file:
                file.write(_lines(actions))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error) from error
        self.actions += actions

    def truncate(self, count: int) -> None:
        """Forgets all but the first actions, and their tensors.

        Raises:
            StorageError: if the disk is full.
        """
        kept, dropped = self.actions[:count], self.actions[count:]
        write_atomic(self.folder / ACTIONS, _lines(kept))
        for action in dropped:
            self._path(action.number).unlink(missing_ok=True)
            self._keyframe(action.number).unlink(missing_ok=True)
        self.actions = kept

    def write_tensors(
        self, number: int, tensors: Mapping[str, torch.Tensor], *, keyframe: bool = False
    ) -> None:
        """Writes the tensors of an action, or all tensors at its point.

        Raises:
            StorageError: if the disk is full.
        """
        write_tensors(self._keyframe(number) if keyframe else self._path(number), tensors)

    def tensors(self, number: int, *, keyframe: bool = False) -> dict[str, torch.Tensor]:
        """Reads them; none where there is no file, as for a rewrite without thetas.

        Raises:
            StorageError: if the file is damaged.
        """
        path = self._keyframe(number) if keyframe else self._path(number)
        return read_tensors(path) if path.exists() else {}

    def keyframes(self) -> list[int]:
        """Returns the points of which all tensors are stored."""
        return [
            0,
            *sorted(int(path.stem.split("-")[1]) for path in self.folder.glob("keyframe-*.safetensors")),
        ]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _keyframe(self, number: int) -> Path:
        return self._path(number) if number == 0 else self.folder / f"keyframe-{number:06d}.safetensors"


def _lines(actions: Sequence[Action]) -> bytes:
    return "".join(f"{json.dumps(action.to_json())}\n" for action in actions).encode()
