"""How the model of a history or a reproducer is made again: by its name, or from its PyTorch source.

Nothing is pickled: ``origin.json`` holds how the command line names the model, or the class in ``model.py``
and the structure of its example inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from exporters.inputs import random_inputs
from exporters.pytorch_source import export_pytorch, load_exported
from morphir.analysis.tracing import trace
from morphir.errors import ExportError
from morphir.ir.graph import Graph
from morphir.ir.index_map import Rewrite
from morphir.ir.inputs import ExampleInputs, TensorSpec
from morphir.ir.values import map_leaves
from morphir.runtime.history.state import HistoryError
from morphir.runtime.storage.files import read_json, to_json, write_atomic
from morphir.runtime.storage.packing import pack, unpack
from passes.instruments import unobserved
from passes.transform import replay

ORIGIN = "origin.json"
_SOURCE = "model.py"
_SPEC = "tensor-spec"
Resolve = Callable[[Mapping[str, Any]], Graph]
"""Makes a fresh graph of what the command line calls a model."""


def write_origin(
    folder: Path, graph: Graph, spec: Mapping[str, Any] | None, *, required: bool = True
) -> None:
    """Writes how to make a graph's program again; its tensors are stored elsewhere.

    Args:
        folder: Where to.
        graph: The graph as it is.
        spec: How the command line names the model that it was traced of; None to store its source.
        required: Whether a model without a name and without PyTorch source is refused. If not, the reason is
            written, and opening asks for a fresh trace.

    Raises:
        ExportError: if it is refused.
    """
    data: dict[str, Any] = {"dtype": str(graph.dtype).removeprefix("torch."), "training": graph.training}
    data["rewrites"] = [rewrite.to_json() for rewrite in graph.history]
    if spec is not None:
        write_atomic(folder / ORIGIN, to_json({**data, "model": dict(spec)}))
        return
    try:
        exported = export_pytorch(graph, folder / _SOURCE, verify=False)
    except ExportError as error:
        if required:
            raise
        write_atomic(folder / ORIGIN, to_json({**data, "refused": error.message}))
        return
    exported.weights.unlink()  # all tensors are stored with the history or the reproducer
    inputs = {"args": graph.inputs.args, "kwargs": dict(graph.inputs.kwargs)}
    skeleton, _ = pack(map_leaves(_spec_to_json, inputs, TensorSpec))
    write_atomic(folder / ORIGIN, to_json({**data, "class": exported.class_name, "inputs": skeleton}))


def read_origin(folder: Path, resolve: Resolve | None = None) -> Graph:
    """Makes the program again, with other weights.

    Args:
        folder: Where it was written to.
        resolve: Makes a graph of a model's name; without one, only source is read.

    Raises:
        MorphirError: if it cannot be made any more.
    """
    data = read_json(folder / ORIGIN)
    if "refused" in data:
        raise HistoryError(
            f"the model of {folder} cannot be made again: {data['refused']}",
            hint="give Session.open a fresh trace of it, graph=",
        )
    if "model" in data:
        if resolve is None:
            raise HistoryError(
                f"the model of {folder} is known by its name alone",
                hint="open it with 'morphir debug' or give a graph",
            )
        graph = resolve(data["model"])
        with unobserved():
            replay(graph, map(Rewrite.from_json, data["rewrites"]))
    else:
        graph = _from_source(folder, data)  # which is grown already
        graph.history = tuple(map(Rewrite.from_json, data["rewrites"]))
    if data["dtype"] != "None":
        graph.to(getattr(torch, data["dtype"]))
    return graph.train(data["training"])


def _from_source(folder: Path, data: Mapping[str, Any]) -> Graph:
    network = load_exported(folder / _SOURCE, data["class"]).train(data["training"])
    read = cast("dict[str, Any]", _specs_from_json(unpack(data["inputs"], {})))
    args, kwargs = random_inputs(ExampleInputs(read["args"], read["kwargs"]), torch.device("cpu"))
    return trace(
        network if data["dtype"] == "None" else network.to(getattr(torch, data["dtype"])), kwargs or args
    )


def _spec_to_json(leaf: Any) -> Any:
    if not isinstance(leaf, TensorSpec):
        return leaf
    return {_SPEC: [list(leaf.shape), str(leaf.dtype).removeprefix("torch.")]}


def _specs_from_json(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        items = cast("Mapping[str, Any]", tree)
        if set(items) == {_SPEC}:
            shape, dtype = items[_SPEC]
            return TensorSpec(tuple(shape), getattr(torch, dtype))
        return {key: _specs_from_json(value) for key, value in items.items()}
    if isinstance(tree, (tuple, list)):
        made = [_specs_from_json(item) for item in cast("list[Any]", tree)]
        return tuple(made) if isinstance(tree, tuple) else made
    return tree
