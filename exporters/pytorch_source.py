"""Exports a graph as plain PyTorch source with its weights beside it, and compares the two."""

from __future__ import annotations

import os
import types
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save  # pyright: ignore[reportUnknownVariableType]
from torch import nn
from torch.utils import _pytree as pytree

from exporters.files import checked_path, staged
from exporters.inputs import random_inputs
from exporters.overwriting import check_replaceable
from exporters.source.program import program
from exporters.source.text import morphir_version, print_program
from morphir.errors import ExportError
from morphir.ir.graph import Graph, require_graph
from morphir.ir.state import evaluation_mode
from morphir.ir.values import cloned


@dataclass(frozen=True)
class PytorchExport:
    """What was written.

    Attributes:
        source: The Python file.
        weights: The safetensors file.
        class_name: The model's class in the Python file.
    """

    source: Path
    weights: Path
    class_name: str


def export_pytorch(
    graph: Graph, path: str | os.PathLike[str], *, class_name: str | None = None, verify: bool = True
) -> PytorchExport:
    """Writes ``grown.py``, which imports torch alone, and ``grown.safetensors`` with the ``state_dict``.

    Args:
        graph: The graph; neither it nor its mode is changed.
        path: Where to put the source; the weights go beside it. Earlier exports are replaced, no other file.
        class_name: Name of the model's class; the user's own by default.
        verify: Load what was written, and compare keys and outputs (bit for bit, in evaluation mode).

    Raises:
        ExportError: if the program uses what is not torch's, the files cannot be written or are no exports,
            or what was written does not compute what the graph computes; then nothing new is left on disk.
    """
    require_graph(graph)
    source = checked_path(path, ".py")
    weights = source.with_suffix(".safetensors")
    check_replaceable(source, weights)
    name = _class_name(graph, class_name)
    parameters = sum(parameter.numel() for parameter in graph.parameters())
    text = print_program(program(graph, name), parameters=parameters, weights=weights.name)
    with staged(weights, source) as (new_weights, new_source):
        new_source.write_text(text, encoding="utf-8")
        save_weights(graph, new_weights)
        if verify:
            _verify(graph, new_source, new_weights, name)
    return PytorchExport(source, weights, name)


def _class_name(graph: Graph, class_name: str | None) -> str:
    name = class_name or graph.module_types.get("", "Network")
    name = f"{name}Network" if name in {"torch", "nn", "F", "load"} else name
    if not name.isidentifier():
        raise ExportError(f"{name!r} is not a class name", hint="pass class_name=")
    return name


def save_weights(graph: Graph, path: Path) -> None:
    """Writes the ``state_dict``; a tensor under two keys is written twice, so that every key loads."""
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in graph.state_dict().items():
        if not isinstance(cast("object", tensor), torch.Tensor):
            raise ExportError(f"the state under {key!r} is no tensor, safetensors cannot hold it")
        tensors[key] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    metadata = {"format": "pt", "producer": f"MorphIR {morphir_version()}"}
    path.write_bytes(save(tensors, metadata=metadata))


def _verify(graph: Graph, source: Path, weights: Path, class_name: str) -> None:
    network = load_exported(source, class_name)
    saved, expected = load_file(weights), graph.state_dict()
    try:
        network.load_state_dict(saved, strict=True)
    except RuntimeError as error:
        raise ExportError(f"the exported class does not load its weights: {error}") from error
    loaded = network.state_dict()
    wrong = [key for key in expected if not _same(loaded[key], expected[key])]
    if wrong:
        raise ExportError(f"the exported weights differ from the graph's: {', '.join(wrong)}")
    _lay_out_like(network, graph)
    args, kwargs = random_inputs(graph.inputs, graph.device)
    # In-place operations may write to their inputs, so each side gets its own.
    with torch.no_grad(), evaluation_mode(graph), _deterministic():
        wanted = graph(*cloned(args), **cloned(kwargs))
        found = network.eval()(*cloned(args), **cloned(kwargs))
    _check_outputs(wanted, found)


def load_exported(source: Path, class_name: str) -> nn.Module:
    """Returns the exported class's network with fresh weights.

    The file runs as a module of its own, that nothing else sees, without touching the random state.
    """
    module = types.ModuleType("morphir_exported")
    module.__file__ = str(source)
    with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType]
        code = compile(source.read_text(encoding="utf-8"), str(source), "exec", dont_inherit=True)
        exec(code, module.__dict__)
        return cast("nn.Module", getattr(module, class_name)())


def _lay_out_like(network: nn.Module, graph: Graph) -> None:
    """Gives the tensors the graph's device and memory layout, on which a kernel's rounding may depend."""
    network.to(graph.device)
    wanted = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if name in wanted:
            tensor.data = torch.empty_like(wanted[name].detach()).copy_(tensor.detach())


@contextmanager
def _deterministic() -> Generator[None]:
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


def _same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    return bool(torch.equal(found.to(wanted.device).nan_to_num(), wanted.nan_to_num()))


def _check_outputs(wanted: object, found: object) -> None:
    leaves, structure = pytree.tree_flatten(cast("Any", _plain(wanted)))
    found_leaves, found_structure = pytree.tree_flatten(cast("Any", _plain(found)))
    if structure != found_structure:
        raise ExportError(f"the exported class returns {found_structure}, the graph {structure}")
    for at, (left, right) in enumerate(zip(leaves, found_leaves, strict=True)):
        if isinstance(left, torch.Tensor) and not _same(cast("torch.Tensor", right), left):
            difference = (cast("torch.Tensor", right).double() - left.double()).abs().max().item()
            raise ExportError(
                f"output {at} of the exported class differs from the graph's by {difference:.3g}"
            )


def _plain(value: object) -> object:
    """Returns fx's immutable collections, and records, as plain collections, so that structures compare."""
    if is_dataclass(value) and not isinstance(value, (Mapping, type)):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in cast("tuple[object, ...]", value)]
        return items if isinstance(value, list) else tuple(items)
    return value
