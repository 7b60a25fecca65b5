"""From ``--preset``, ``--config`` and ``--set`` to one configuration; the later wins."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch

from morphir.errors import MorphirError
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.validation import resolve_device
from morphir.runtime.storage.files import read_json

DEFAULT_PRESET = "laptop"


def growth_config(
    preset: str | None, file: Path | None, assignments: Iterable[str], **options: Any
) -> GrowthConfig:
    """Puts a configuration together.

    Args:
        preset: Name of a preset; :data:`DEFAULT_PRESET` where None.
        file: JSON object of options, or a run's ``config.json``.
        assignments: Texts of the form ``key=value``; values are JSON, or text where they are not.
        **options: What has an option of its own; None is not given.

    Raises:
        MorphirError: for an unknown preset or option, a value out of range, or a file that is no JSON object.
    """
    given = {key: value for key, value in options.items() if value is not None}
    named = {**_from_file(file), **dict(map(_assignment, assignments)), **given}
    return GrowthConfig.preset(preset or DEFAULT_PRESET, **named)


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    data: object = read_json(file)
    if isinstance(data, dict) and isinstance(nested := cast("dict[str, object]", data).get("config"), dict):
        data = cast("object", nested)
    if not isinstance(data, dict):
        raise MorphirError(f"{file} holds no JSON object", hint='write {"phases": 4, ...}')
    return cast("dict[str, Any]", data)


def _assignment(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise MorphirError(f"--set {text!r} is not of the form key=value", hint="for example --set phases=4")
    try:
        return key.strip(), json.loads(value)
    except ValueError:
        return key.strip(), value


def placed(config: GrowthConfig, device: str | None) -> GrowthConfig:
    """Returns the configuration with a device of this machine.

    Args:
        config: The configuration.
        device: As the user names it, or ``auto``: CUDA, else MPS, else the CPU. Where None, the
            configuration says it, or it is ``auto``.

    Raises:
        MorphirError: if there is no such device on this machine.
    """
    found = resolve_device(_device_name(device or config.device or "auto"), torch.device("cpu"))
    return config.model_copy(update={"device": str(found)})


def _device_name(name: str) -> str:
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
