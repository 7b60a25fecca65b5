"""Compares an ONNX file, run by onnxruntime, with the graph that it was made from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import onnxruntime
import torch
from torch.utils import _pytree as pytree

from exporters.inputs import random_inputs
from morphir.errors import ExportError, GuardError, TargetLimitError
from morphir.ir.graph import Graph
from morphir.ir.values import cloned, map_leaves

ABSOLUTE = 1e-5
RELATIVE = 1e-3
_AS_CLOSE = 4.0
"""How many times PyTorch's own rounding onnxruntime may be away from the exact result."""


def compare(model: Graph, path: Path, batch_sizes: Sequence[int]) -> float:
    """Runs both on random inputs at each batch size.

    Args:
        model: The graph, on the CPU and in evaluation mode.
        path: The ONNX file.
        batch_sizes: The leading extents of the inputs.

    Returns:
        The largest absolute difference.

    Raises:
        TargetLimitError: if the graph itself does not run at one of the sizes.
        ExportError: if an output differs by more than ``1e-5 + 1e-3 * |value|``, and by more than what
            PyTorch's own float32 rounds, seen against float64; or in its top-1 class.
    """
    session = _session(path)
    worst = 0.0
    for batch_size in batch_sizes:
        args, kwargs = random_inputs(
            model.inputs, torch.device("cpu"), seed=batch_size, batch_size=batch_size
        )
        wanted = outputs_at(model, args, kwargs, batch_size)
        found = _run(session, (args, kwargs), batch_size)
        for at, (left, right) in enumerate(zip(wanted, found, strict=True)):
            what = f"output {at} at batch size {batch_size}"
            try:
                worst = max(worst, _check(what, left, right))
            except _RoundingError as error:
                if not _rounds_alike(left, right, _in_float64(model, args, kwargs, at)):
                    raise
                worst = max(worst, error.difference)
                _check_top1(what, cast(torch.Tensor, left), right, 2 * error.difference)
    return worst


class _RoundingError(ExportError):
    """Two results differ by more than is allowed.

    Attributes:
        difference: The largest absolute difference.
    """

    difference: float = 0.0


def _in_float64(model: Graph, args: Sequence[Any], kwargs: Mapping[str, Any], output: int) -> object:
    """Returns one output of a copy of the graph in float64; None where a guard allows no such inputs."""
    args, kwargs = map_leaves(_doubled, (tuple(args), dict(kwargs)))
    with torch.no_grad(), suppress(GuardError):
        return pytree.tree_leaves(copy.deepcopy(model).double()(*args, **kwargs))[output]
    return None


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


def _rounds_alike(wanted: object, found: torch.Tensor, exact: object) -> bool:
    """Whether onnxruntime is as close to the exact result as float32 arithmetic in PyTorch is.

    A deep network with large activations amplifies rounding beyond any fixed bound, in either runtime.
    """
    if not isinstance(wanted, torch.Tensor) or not isinstance(exact, torch.Tensor):
        return False
    own = float((wanted.double() - exact).abs().max())
    return float((found.double() - exact).abs().max()) <= _AS_CLOSE * own


def outputs_at(model: Graph, args: Sequence[Any], kwargs: Mapping[str, Any], batch_size: int) -> list[object]:
    """Runs the graph on inputs of one batch size.

    Raises:
        GuardError: if the graph holds its inputs to another batch size.
        TargetLimitError: if it does not run at this one.
    """
    args, kwargs = cloned((tuple(args), dict(kwargs)))
    try:
        with torch.no_grad():
            return pytree.tree_leaves(model(*args, **kwargs))
    except GuardError:
        raise
    except Exception as error:
        raise TargetLimitError(
            f"the graph itself does not run at batch size {batch_size}: {error}",
            hint="say at which sizes to compare: batch_sizes=(2, 7)",
        ) from error


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
        error = _RoundingError(
            f"{what} differs between ONNX and the graph by {worst:.3g} absolute, {relative:.3g} relative "
            f"(allowed: {ABSOLUTE:g} + {RELATIVE:g} |value|, or {_AS_CLOSE:g} times PyTorch's own rounding)"
        )
        error.difference = worst
        raise error
    _check_top1(what, wanted, found, 2 * ABSOLUTE)
    return worst


def _check_top1(what: str, wanted: torch.Tensor, found: torch.Tensor, tie: float) -> None:
    """Classes must be the same, but for ties that are closer than rounding."""
    if wanted.ndim != 2 or wanted.shape[1] < 2:
        return
    best = wanted.max(dim=1).values
    chosen = wanted.gather(1, found.argmax(dim=1, keepdim=True)).squeeze(1)
    if not torch.all(chosen >= best - tie):
        raise ExportError(f"{what}: the top-1 class differs between ONNX and the graph")
