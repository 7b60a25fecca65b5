"""Compares an ONNX file, run by onnxruntime, with the graph that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import onnxruntime
import torch
from torch.utils import _pytree as pytree

from exporters.inputs import random_inputs
from morphir.errors import ExportError
from morphir.ir.graph import Graph

ABSOLUTE = 1e-5
RELATIVE = 1e-3


def compare(model: Graph, path: Path, batch_sizes: Sequence[int]) -> float:
    """Runs both on random inputs at each batch size.

    Args:
        model: The graph, on the CPU and in evaluation mode.
        path: The ONNX file.
        batch_sizes: The leading extents of the inputs.

    Returns:
        The largest absolute difference.

    Raises:
        ExportError: if an output differs by more than ``1e-5 + 1e-3 * |value|``, or in its top-1 class.
    """
    session = _session(path)
    worst = 0.0
    for batch_size in batch_sizes:
        args, kwargs = random_inputs(
            model.inputs, torch.device("cpu"), seed=batch_size, batch_size=batch_size
        )
        found = _run(session, (args, kwargs), batch_size)
        with torch.no_grad():
            wanted = pytree.tree_leaves(model(*args, **kwargs))
        for at, (left, right) in enumerate(zip(wanted, found, strict=True)):
            worst = max(worst, _check(f"output {at} at batch size {batch_size}", left, right))
    return worst


def _session(path: Path) -> Any:
    runtime: Any = onnxruntime  # ships no types
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime cannot load the exported file: {error}") from error


def _run(session: Any, inputs: object, batch_size: int) -> list[torch.Tensor]:
    tensors = [leaf for leaf in pytree.tree_leaves(cast("Any", inputs)) if isinstance(leaf, torch.Tensor)]
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    try:
        return [torch.as_tensor(array) for array in session.run(None, feed)]
    except Exception as error:
        raise ExportError(
            f"onnxruntime fails on the exported file at batch size {batch_size}: {error}",
            hint="a batch size that is a literal in the program cannot vary",
        ) from error


def _check(what: str, wanted: object, found: torch.Tensor) -> float:
    if not isinstance(wanted, torch.Tensor):
        wanted = torch.tensor(wanted)
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        raise ExportError(
            f"{what} is {found.dtype} {tuple(found.shape)} in ONNX, "
            f"{wanted.dtype} {tuple(wanted.shape)} in the graph"
        )
    if not wanted.is_floating_point():
        if not torch.equal(wanted, found):
            raise ExportError(f"{what} differs between ONNX and the graph")
        return 0.0
    difference = (wanted - found).abs().nan_to_num(nan=0.0)
    worst = float(difference.max()) if difference.numel() else 0.0
    if not torch.allclose(found, wanted, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
        relative = float((difference / wanted.abs().clamp_min(1e-12)).max())
        raise ExportError(
            f"{what} differs between ONNX and the graph by {worst:.3g} absolute, {relative:.3g} relative "
            f"(allowed: {ABSOLUTE:g} + {RELATIVE:g} |value|)"
        )
    _check_top1(what, wanted, found)
    return worst


def _check_top1(what: str, wanted: torch.Tensor, found: torch.Tensor) -> None:
    """Classes must be the same, but for ties that are closer than rounding."""
    if wanted.ndim != 2 or wanted.shape[1] < 2:
        return
    best = wanted.max(dim=1).values
    chosen = wanted.gather(1, found.argmax(dim=1, keepdim=True)).squeeze(1)
    if not torch.all(chosen >= best - 2 * ABSOLUTE):
        raise ExportError(f"{what}: the top-1 class differs between ONNX and the graph")
