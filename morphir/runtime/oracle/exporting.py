"""Checks of a graph's exports: each verifies itself, and the source, traced again, is the same graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

from exporters.inputs import random_inputs
from exporters.pytorch_source import PytorchExport, load_exported
from exporters.registry import EXPORTERS
from morphir.analysis.tracing import trace
from morphir.errors import MorphirError, TargetLimitError
from morphir.ir.channels import ChannelSpace
from morphir.ir.graph import Graph
from morphir.runtime.oracle.checks import Check


def export_checks(graph: Graph, exporters: Iterable[str]) -> Iterator[Check]:
    """Exports a graph in float32 and evaluation mode, and traces its source again.

    Args:
        graph: The changed graph; its dtype and mode are changed.
        exporters: Names of the exporters.
    """
    graph = graph.float().eval()
    with tempfile.TemporaryDirectory(prefix="morphir-verify-") as folder:
        for name in exporters:
            exporter = EXPORTERS[name]
            try:
                exported = exporter.export(graph, Path(folder) / f"network{exporter.suffix}")
            except MorphirError as error:
                outcome = "refused" if isinstance(error, TargetLimitError) else "failed"
                yield Check(f"export-{name}", outcome, detail=str(error))
                continue
            yield Check(f"export-{name}", "ok")
            if isinstance(exported, PytorchExport):
                yield _retrace(graph, exported)


def _retrace(graph: Graph, exported: PytorchExport) -> Check:
    args, kwargs = random_inputs(graph.inputs, graph.device)
    network = load_exported(exported.source, exported.class_name)
    # Weights as well: an index that the program holds as a buffer says which channels are picked.
    network.load_state_dict(load_file(exported.weights))
    network = network.to(graph.device).eval()
    try:
        again = trace(network, kwargs or args)
    except MorphirError as error:
        return Check("retrace", "failed", detail=str(error))
    difference = first_difference(again, graph)
    return Check("retrace", "failed" if difference else "ok", detail=difference)


def first_difference(found: Graph, wanted: Graph) -> str:
    """Says in words where the channel spaces of two graphs first differ; nothing where they do not."""
    if list(found.spaces) != list(wanted.spaces):
        missing = [name for name in wanted.spaces if name not in found.spaces]
        new = [name for name in found.spaces if name not in wanted.spaces]
        return f"other channel spaces: without {missing}, with {new}" if missing or new else "another order"
    for name, space in wanted.spaces.items():
        mine, theirs = _facts(found.space(name)), _facts(space)
        for fact, value in theirs.items():
            if mine[fact] != value:
                return f"space {name}: {fact} {_brief(mine[fact])} instead of {_brief(value)}"
    return ""


def _facts(space: ChannelSpace) -> dict[str, Any]:
    """Returns what a space is, but for the names of nodes."""
    return {
        "width": space.width,
        "verdicts": [(verdict.kind, verdict.code) for verdict in space.verdicts],
        "producers": [(p.parameter, p.out_axis, p.in_axis) for p in space.producers],
        "consumers": [(c.parameter, c.out_axis, c.in_axis, c.dim, c.groups) for c in space.consumers],
        "bindings": sorted((b.parameter, b.axis, b.role, b.groups) for b in space.bindings),
    }


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
