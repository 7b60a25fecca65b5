"""Exports replace exports, and no other file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exporters.onnx import export_onnx
from exporters.pytorch_source import export_pytorch
from morphir.analysis.tracing import trace
from morphir.errors import ExportError
from morphir.ir.graph import Graph


def network() -> Graph:
    return trace(nn.Sequential(nn.Linear(3, 2)).eval(), torch.randn(2, 3))


def users_source(place: Path) -> None:
    place.write_text('"""Net: exported by MorphIR one day."""\n')


def users_weights(place: Path) -> None:
    save_file({"weight": torch.zeros(2)}, place)


def users_onnx(place: Path) -> None:
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), place)


def no_such_format(place: Path) -> None:
    place.write_bytes(b"\xff\xfe by no means")


@pytest.mark.parametrize(
    ("export", "name", "write"),
    [
        (export_pytorch, "net.py", users_source),
        (export_pytorch, "net.py", no_such_format),
        (export_pytorch, "net.safetensors", users_weights),
        (export_pytorch, "net.safetensors", no_such_format),
        (export_onnx, "net.onnx", users_onnx),
        (export_onnx, "net.onnx", no_such_format),
    ],
)
def test_a_users_file_stays(
    tmp_path: Path, export: Callable[..., Any], name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    suffix = ".onnx" if export is export_onnx else ".py"
    with pytest.raises(ExportError, match=rf"{name} is there, and MorphIR did not.*\n.*hint: export under"):
        export(network(), (tmp_path / name).with_suffix(suffix))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(("export", "suffix"), [(export_pytorch, ".py"), (export_onnx, ".onnx")])
def test_an_export_and_an_empty_file_are_replaced(
    tmp_path: Path, export: Callable[..., Any], suffix: str
) -> None:
    place = tmp_path / f"net{suffix}"
    place.touch()
    export(network(), place)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    export(network(), place)
    assert {path.name for path in tmp_path.iterdir()} == first.keys()
