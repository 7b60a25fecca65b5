"""Exports a graph as one ONNX file with a dynamic batch, checked by onnx and compared with onnxruntime."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import fx
from torch.utils import _pytree as pytree

from exporters.files import checked_path, staged
from exporters.inputs import random_inputs
from exporters.onnx_attention import with_heads
from exporters.onnx_check import compare, outputs_at
from exporters.onnx_clean import add_lineage, strip_paths
from exporters.outputs import plain_outputs
from exporters.overwriting import check_replaceable
from exporters.quiet import quiet
from morphir.errors import ExportError, GuardError, TargetLimitError
from morphir.ir.graph import Graph, require_graph
from morphir.ir.guards import is_guard
from morphir.ir.inputs import TensorSpec

LIMIT_BYTES = 1_800_000_000
_TRACED_BATCH = 3
"""Neither 0 nor 1, which ``torch.export`` takes for constants."""


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
        path: The ONNX file.
        opset: Version of the ONNX operators.
        inputs: Names of the inputs: the model's forward parameters.
        outputs: Names of the outputs: the keys of a dict, or ``output``, or ``output_0`` and so on.
        max_difference: Largest absolute difference from the graph that the comparison saw; None without one.
    """

    path: Path
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_difference: float | None


def export_onnx(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    verify: bool = True,
    batch_sizes: Sequence[int] = (1, 2, 7),
) -> OnnxExport:
    """Writes the graph, as it computes in evaluation mode, to one ONNX file.

    The growth history, MorphIR's version and the number of parameters are in the file's metadata.

    Args:
        graph: A float32 graph in evaluation mode; it is not changed.
        path: The file; its folder is made. An earlier export is replaced, another file not.
        opset: Version of the ONNX operators; torch's default if None.
        verify: Compare with onnxruntime on random inputs: 1e-5 absolute, 1e-3 relative, the same top-1 class.
        batch_sizes: The batch sizes to compare at.

    Raises:
        TargetLimitError: if the weights take more than 1.8 GB, or the path through the model depends on the
            batch size.
        ExportError: in train mode, for other dtypes than float32, in the place of a file that is no export,
            or if the file does not compute what the graph computes; then nothing new is left on disk.
    """
    require_graph(graph)
    place = checked_path(path, ".onnx")
    check_replaceable(place)
    _check_exportable(graph)
    model = with_heads(plain_outputs(copy.deepcopy(graph).cpu()))
    _check_guards(model, batch_sizes)
    proto = _convert(model, opset)
    strip_paths(proto)
    add_lineage(proto, graph)
    difference: float | None = None
    with staged(place) as (temporary,):
        temporary.write_bytes(proto.SerializeToString())
        _check_file(temporary)
        if verify:
            difference = compare(model, temporary, batch_sizes)
    return OnnxExport(
        place,
        next(entry.version for entry in proto.opset_import if entry.domain == ""),
        tuple(entry.name for entry in proto.graph.input),
        tuple(entry.name for entry in proto.graph.output),
        difference,
    )


def _check_exportable(graph: Graph) -> None:
    if any(module.training for module in graph.modules()):
        raise ExportError(
            "the graph is in train mode, ONNX holds evaluation alone", hint="call graph.eval() first"
        )
    tensors = (*graph.parameters(), *graph.buffers())
    specs = [leaf for leaf in _leaves(graph) if isinstance(leaf, TensorSpec)]
    dtypes = {
        item.dtype for item in (*tensors, *specs) if item.dtype.is_floating_point or item.dtype.is_complex
    }
    if dtypes - {torch.float32}:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes - {torch.float32}))
        raise ExportError(
            f"ONNX export computes in float32, the graph holds {names}", hint="call graph.float()"
        )
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > LIMIT_BYTES:
        raise TargetLimitError(
            f"the weights take {size / 1e9:.1f} GB, one ONNX file holds 1.8 GB",
            hint="export PyTorch source, whose weights have no such limit",
        )
    if graph.inputs.batch_size is None:
        raise ExportError("the example inputs have no batch dimension")


def _check_guards(model: Graph, batch_sizes: Sequence[int]) -> None:
    """Refuses a program whose path through the model depends on the batch size."""
    if not any(is_guard(node) for node in model.graph.nodes):
        return
    for batch_size in sorted({_TRACED_BATCH, *batch_sizes}):
        args, kwargs = random_inputs(model.inputs, torch.device("cpu"), batch_size=batch_size)
        try:
            outputs_at(model, args, kwargs, batch_size)
        except GuardError as error:
            raise TargetLimitError(
                f"ONNX holds every batch size, the program does not hold {batch_size}: {error.message}",
                source=error.source,
                hint="let no control flow ask for the batch size, or export PyTorch source",
            ) from error


def _leaves(graph: Graph) -> list[object]:
    tree = (graph.inputs.args, dict(graph.inputs.kwargs))
    return pytree.tree_leaves(tree, is_leaf=_is_spec)


def _convert(model: Graph, opset: int | None) -> onnx.ModelProto:
    args, kwargs = random_inputs(model.inputs, torch.device("cpu"), batch_size=_TRACED_BATCH)
    try:
        with quiet(), torch.no_grad():
            converted = torch.onnx.export(  # pyright: ignore[reportUnknownMemberType]
                model,
                # torch takes a last positional argument that is a dict for the keyword arguments.
                (*args, {}) if args and isinstance(args[-1], dict) else args,
                kwargs=kwargs,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=_dynamic_shapes(model),
                input_names=_input_names(model),
                output_names=_output_names(model),
                verbose=False,
            )
            assert converted is not None
            proto = converted.model_proto
    except Exception as error:
        cause = error.__cause__ or error
        # torch may well export a module that cannot be traced; where it does not, nothing is wrong. Nor is it
        # where ONNX has no form of an operator.
        kind = TargetLimitError if model.opaque_calls or _has_no_form(error) else ExportError
        raise kind(
            f"torch.onnx cannot export the graph: {_first_line(cause)}",
            hint="no batch size may be a literal in the program, and each operator needs an ONNX form",
        ) from error
    made = next(entry.version for entry in proto.opset_import if entry.domain == "")
    if opset is not None and made != opset:
        raise ExportError(
            f"the graph cannot be converted to opset {opset}, only to {made}", hint=f"use opset={made}"
        )
    return proto


def _has_no_form(error: BaseException | None) -> bool:
    """Whether torch says that it has no ONNX function for an operator."""
    while error is not None:
        if type(error).__name__ == "DispatchError":
            return True
        error = error.__cause__
    return False


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'no message'}"


def _by_parameter(model: Graph) -> dict[str, Any]:
    """Returns the example inputs by the name of the forward parameter that takes them."""
    names = [str(node.target) for node in model.graph.nodes if node.op == "placeholder"]
    return {**dict(zip(names, model.inputs.args, strict=False)), **model.inputs.kwargs}


def _dynamic_shapes(model: Graph) -> dict[str, Any]:
    batch = torch.export.Dim("batch")
    size = model.inputs.batch_size

    def shape(leaf: Any) -> dict[int, Any] | None:
        is_batched = isinstance(leaf, TensorSpec) and leaf.shape[:1] == (size,)
        return {0: batch} if is_batched else None

    return cast("dict[str, Any]", pytree.tree_map(shape, _by_parameter(model), is_leaf=_is_spec))


def _is_spec(leaf: object) -> bool:
    return isinstance(leaf, TensorSpec)


def _input_names(model: Graph) -> list[str]:
    paths, _ = pytree.tree_flatten_with_path(_by_parameter(model), is_leaf=_is_spec)
    return ["_".join(_key(entry) for entry in path) for path, leaf in paths if isinstance(leaf, TensorSpec)]


def _output_names(model: Graph) -> list[str]:
    output = next(node for node in model.graph.nodes if node.op == "output").args[0]
    if isinstance(output, fx.Node):
        return ["output"]
    paths, _ = pytree.tree_flatten_with_path(_plain(output))
    names = ["_".join(_key(entry) for entry in path) for path, leaf in paths if isinstance(leaf, fx.Node)]
    return [f"output_{name}" if name[0].isdecimal() else name for name in names]


def _key(entry: Any) -> str:
    return str(entry.key if hasattr(entry, "key") else getattr(entry, "idx", entry))


def _plain(value: object) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast("dict[object, object]", value).items()}
    if isinstance(value, (tuple, list)):
        return tuple(_plain(item) for item in cast("tuple[object, ...]", value))
    return value


def _check_file(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)  # pyright: ignore[reportUnknownMemberType]
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx.checker refuses the exported file: {_first_line(error)}") from error
