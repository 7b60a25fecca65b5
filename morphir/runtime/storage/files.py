"""Files that are either whole or not there: written beside their place, synced, and moved into it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch

from morphir.errors import MorphirError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_Model = TypeVar("_Model", bound=BaseModel)


class StorageError(MorphirError):
    """A file cannot be written or read."""


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file and waits until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that a reader finds the old one or the new one, never half of it.

    Raises:
        StorageError: if the disk is full, or the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(temporary, data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where the parent is a file, nothing can be there
            temporary.unlink()
        raise cannot_write(path, error) from error


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes tensors as safetensors, as :func:`write_atomic` does.

    Raises:
        StorageError: if the disk is full, or the place cannot be written.
    """
    copies = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    write_atomic(path, safetensors_torch.save(copies))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads a safetensors file whole, so that it may be replaced while its tensors are in use.

    Raises:
        StorageError: if there is none, or it is damaged.
    """
    try:
        return safetensors_torch.load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path} is damaged: {error}") from error


def cannot_write(path: Path, error: OSError) -> StorageError:
    """Returns the error for a failed write."""
    hint = "free some space, or choose another place" if error.errno in _FULL else "choose another place"
    if isinstance(error, PermissionError):
        hint = "choose a place that you may write to, or change its permissions"
    return StorageError(f"cannot write {path}: {error.strerror or error}", hint=hint)


def sync_directory(path: Path) -> None:
    """Waits until the disk has the directory's entries, where the system can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def to_json(data: Any) -> bytes:
    """Returns readable JSON."""
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


def to_compact_json(data: Any) -> bytes:
    """Returns JSON without white space, for long columns of numbers."""
    return (json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        StorageError: if it is not there, or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def read_validated(path: Path, model: type[_Model]) -> _Model:
    """Reads a JSON file into a pydantic model.

    Raises:
        StorageError: if it is not there, is not JSON, or does not hold what it should.
    """
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        raise StorageError(f"{path} is damaged: {error}") from error
