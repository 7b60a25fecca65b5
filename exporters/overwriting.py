"""An export may take the place of an earlier export, and of nothing else: not of the model's own source."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import onnx
from google.protobuf.message import DecodeError
from safetensors import SafetensorError, safe_open

from morphir.errors import ExportError

_HEADER = re.compile(rb'"""\w+: [\d,]+ parameters, exported by MorphIR ')


def check_replaceable(*places: Path) -> None:
    """Checks that a file may be written.

    Raises:
        ExportError: if it is there, holds something, and is no export.
    """
    for place in places:
        if place.is_file() and place.stat().st_size and not _IS_EXPORT[place.suffix](place):
            raise ExportError(
                f"{place} is there, and MorphIR did not export it",
                hint="export under another name, or delete it first",
            )


def _is_source(place: Path) -> bool:
    with place.open("rb") as file:
        return _HEADER.match(file.readline()) is not None


def _are_weights(place: Path) -> bool:
    try:
        with cast("Any", safe_open)(place, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError:
        return False
    return metadata.get("producer", "").startswith("MorphIR")


def _is_onnx(place: Path) -> bool:
    try:
        model = onnx.load(place, load_external_data=False)  # pyright: ignore[reportUnknownMemberType]
    except DecodeError:
        return False
    return any(entry.key == "morphir.version" for entry in model.metadata_props)


_IS_EXPORT: Mapping[str, Callable[[Path], bool]] = MappingProxyType(
    {".py": _is_source, ".safetensors": _are_weights, ".onnx": _is_onnx}
)
