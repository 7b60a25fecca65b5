"""The exporters by name; adding one is a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from exporters.onnx import export_onnx
from exporters.pytorch_source import export_pytorch


@dataclass(frozen=True)
class Exporter:
    """A target.

    Attributes:
        name: What the command line calls it.
        suffix: Of the file that it writes.
        export: Takes the graph and the path; returns what was written.
        summary: One line for ``--help``.
    """

    name: str
    suffix: str
    export: Callable[..., Any]
    summary: str


_ALL = (
    Exporter("pytorch", ".py", export_pytorch, "PyTorch source, with its weights as safetensors beside it"),
    Exporter("onnx", ".onnx", export_onnx, "ONNX with a dynamic batch, compared with onnxruntime"),
)

EXPORTERS: Mapping[str, Exporter] = MappingProxyType({exporter.name: exporter for exporter in _ALL})
