"""Whether the learner's copy of a program computes what the program does.

In the copy nothing that depends on the inputs is computed in place. A write through a view, as
``h[:, 0].mul_(2)``, changes other values too, which the copy does not follow; then nothing is learned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.ir.source import source_of
from morphir.ir.state import evaluation_mode
from morphir.ir.trace import keywords_in_order
from morphir.ir.values import cloned
from morphir.runtime.learning.observation import observe, random_inputs
from morphir.runtime.learning.working_copy import WorkingCopy

_HINT = "write it out of place: torch.cat, torch.where or x = x * 2 in the place of a write into a part"


def check_copy(graph: Graph, work: WorkingCopy) -> None:
    """Compares a working copy with its graph, on random inputs in evaluation mode.

    Raises:
        MorphirError: if something is still written in place, with the node; or if the outputs differ.
    """
    for node in work.activations():
        if _writes(node):
            raise MorphirError(
                "the learner cannot follow a value that is written in place",
                node=node.name,
                source=source_of(node),
                hint=_HINT,
            )
    if work.overwritten and graph.device.type != "meta":
        _compare(graph, work)


def _writes(node: fx.Node) -> bool:
    name = str(node.target)
    is_method = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
    return is_method or node.kwargs.get("out") is not None


def _compare(graph: Graph, work: WorkingCopy) -> None:
    args, kwargs = random_inputs(graph)
    output = next(node for node in reversed(work.module.graph.nodes) if node.op == "output")
    found = observe(graph, work, (cloned(args), cloned(kwargs)), lambda value: value)[output]
    inputs = [*cloned(args), *keywords_in_order(graph, len(args), cloned(kwargs))]
    with torch.no_grad(), evaluation_mode(graph), torch.random.fork_rng(devices=_devices(graph)):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
        wanted: Any = fx.Interpreter(graph).run(*inputs)
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True)
    if not all(_close(left, right) for left, right in pairs):
        first = next(iter(work.overwritten.values()))
        raise MorphirError(
            "the learner cannot follow a write into a part of a value that is read elsewhere",
            node=first.name,
            source=source_of(first),
            hint=_HINT,
        )


def _devices(graph: Graph) -> list[torch.device]:
    return [graph.device] if graph.device.type == "cuda" else []


def _close(found: object, wanted: object) -> bool:
    if not isinstance(found, torch.Tensor) or not isinstance(wanted, torch.Tensor):
        return found == wanted
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    scale = float(wanted.abs().nan_to_num(posinf=0.0).max()) if wanted.numel() else 0.0
    return torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
