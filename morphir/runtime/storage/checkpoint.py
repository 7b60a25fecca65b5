"""Checkpoints: one directory each, safetensors and a JSON manifest, whole or not there.

``checkpoints/000012/`` is the run after 12 epochs. It is written as ``.new-000012``, synced, and renamed; its
manifest holds the checksum of every other file, so that a damaged one is known before anything is loaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from pydantic import BaseModel, ValidationError
from safetensors import torch as safetensors_torch

from morphir.errors import MorphirError
from morphir.runtime.storage.files import cannot_write, read_json, sync_directory, to_json, write_bytes
from morphir.runtime.storage.packing import pack, unpack

FORMAT = 1
MANIFEST = "manifest.json"


class CheckpointError(MorphirError):
    """A checkpoint cannot be read."""


class Manifest(BaseModel):
    """What ``manifest.json`` holds.

    Attributes:
        format: Version of this layout.
        position: Number of epochs that are done.
        checksums: File name to SHA-256, in hexadecimal.
        sections: Section name to the skeleton of its state; its tensors are in ``<section>.safetensors``.
        versions: Versions of what wrote it.
        run: What the run has to say about itself.
    """

    format: int
    position: int
    checksums: dict[str, str]
    sections: dict[str, Any]
    versions: dict[str, str]
    run: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        position: Number of epochs that are done.
        sections: Name to nested state (``weights``, ``optimizer``, ``learner``, ``random``, ...).
        run: Plain data about the run.
    """

    position: int
    sections: Mapping[str, Any]
    run: Mapping[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Writes a checkpoint beside the others, and removes the oldest ones.

    Args:
        folder: The directory that holds all checkpoints of a run.
        checkpoint: What to write.
        keep: How many of the last ones stay.

    Returns:
        The checkpoint's directory.

    Raises:
        StorageError: if the disk is full, or the place cannot be written; the other checkpoints are left as
            they are.
    """
    place = folder / f"{checkpoint.position:06d}"
    temporary = folder / f".new-{place.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()
        _write_files(temporary, checkpoint)
        _move_away(place)
        os.replace(temporary, place)
        sync_directory(folder)
        _remove_oldest(folder, keep)
        _remove_leftovers(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(place, error) from error
    return place


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    skeletons: dict[str, Any] = {}
    checksums: dict[str, str] = {}
    for name, tree in checkpoint.sections.items():
        skeletons[name], tensors = pack(tree)
        data = safetensors_torch.save(tensors)
        write_bytes(folder / f"{name}.safetensors", data)
        checksums[f"{name}.safetensors"] = hashlib.sha256(data).hexdigest()
    manifest = Manifest(
        format=FORMAT,
        position=checkpoint.position,
        checksums=checksums,
        sections=skeletons,
        versions={"torch": torch.__version__, "safetensors": safetensors.__version__},
        run=dict(checkpoint.run),
    )
    write_bytes(folder / MANIFEST, to_json(manifest.model_dump()))
    sync_directory(folder)


def _move_away(place: Path) -> None:
    """A directory cannot be replaced by another in one step unless it is empty."""
    if place.exists():
        os.replace(place, place.with_name(f".old-{place.name}"))


def _remove_leftovers(folder: Path) -> None:
    for leftover in (*folder.glob(".new-*"), *folder.glob(".old-*")):
        shutil.rmtree(leftover)


def _remove_oldest(folder: Path, keep: int) -> None:
    for place in checkpoints(folder)[:-keep]:
        _move_away(place)


def checkpoints(folder: Path) -> list[Path]:
    """Returns the directories of all checkpoints, oldest first."""
    return sorted(place for place in folder.glob("[0-9]*") if place.is_dir() and place.name.isdigit())


def read_checkpoint(place: Path) -> Checkpoint:
    """Reads one checkpoint, and checks every file of it first.

    Raises:
        CheckpointError: if a file is missing, truncated or changed; names it.
    """
    try:
        manifest = Manifest.model_validate(read_json(place / MANIFEST))
    except (MorphirError, ValidationError) as error:
        raise CheckpointError(f"checkpoint {place} is damaged: its {MANIFEST} cannot be read") from error
    if manifest.format != FORMAT:
        raise CheckpointError(f"checkpoint {place} has format {manifest.format}, this version reads {FORMAT}")
    sections = {
        name: unpack(skeleton, _read_tensors(place / f"{name}.safetensors", manifest))
        for name, skeleton in manifest.sections.items()
    }
    return Checkpoint(manifest.position, sections, manifest.run)


def _read_tensors(path: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path.parent} is damaged: {path.name}: {error.strerror}"
        ) from error
    if hashlib.sha256(data).hexdigest() != manifest.checksums.get(path.name):
        raise CheckpointError(f"checkpoint {path.parent} is damaged: {path.name} is truncated or was changed")
    return safetensors_torch.load(data)


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Reads the newest checkpoint that is whole.

    Damaged newer ones are renamed to ``damaged-<number>``.

    Returns:
        The checkpoint, or None where there is none at all, and a warning for each damaged one.

    Raises:
        CheckpointError: if there are checkpoints, and all are damaged.
    """
    warnings: list[str] = []
    damaged: list[Path] = []
    for place in reversed(checkpoints(folder)):
        try:
            checkpoint = read_checkpoint(place)
        except CheckpointError as error:
            warnings.append(f"{error.message}; going back to the one before")
            damaged.append(place)
            continue
        for bad in damaged:
            _set_aside(bad)
        return checkpoint, tuple(warnings)
    if damaged:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged", hint="start again in an empty directory"
        )
    return None, ()


def _set_aside(place: Path) -> None:
    target = place.with_name(f"damaged-{place.name}")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(place, target)
