"""``morphir export``: a run's network, rebuilt from seed, rewrites and weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from safetensors.torch import load_file
from typer.testing import Result

from morphir.cli.runs import load_network

Invoke = Callable[..., Result]


def test_a_run_exports_what_it_exported_at_its_end(
    invoke: Invoke, finished_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "network.py"
    result = invoke("export", finished_run, "--to", "pytorch", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"wrote {out}, verified\n"
    wanted, found = (
        load_file(path) for path in (finished_run / "network.safetensors", out.with_suffix(".safetensors"))
    )
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert out.read_text() == (finished_run / "network.py").read_text()


def test_onnx(invoke: Invoke, finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    assert invoke("export", finished_run, "--to", "onnx", "--out", out).exit_code == 0
    sizes = {tuple(item.dims) for item in onnx.load(out).graph.initializer}
    assert tuple(load_network(finished_run).get_parameter("head.weight").shape) in sizes


def test_a_model_without_a_run(invoke: Invoke, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.py"
    options = ("--channels", 1, "--image-size", 8, "--to", "pytorch", "--out", out)
    assert invoke("export", f"{model_file}:build", *options).exit_code == 0
    assert "class Net(nn.Module)" in out.read_text()


def test_bad_input(invoke: Invoke, finished_run: Path, tmp_path: Path) -> None:
    result = invoke("export", finished_run, "--to", "tflite")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there is no exporter 'tflite'" in result.stderr
    assert "pytorch, onnx" in result.stderr
    result = invoke("export", finished_run, "--to", "onnx", "--out", tmp_path / "net.pt")
    assert "is not the name of a .onnx file" in result.stderr
