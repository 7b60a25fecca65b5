"""Functions outside torch that a trace keeps whole, as exported source spells them out.

A library's function whose own source reads more than torch has its equal here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from exporters.outputs import makes_record
from exporters.source.inlining import inlined, refusal
from exporters.source.public_names import public_name
from morphir.errors import ExportError
from morphir.ir.guards import guard
from morphir.ir.source import source_of


@torch.fx.wrap  # a leaf again, when the exported source is traced
def stochastic_depth(x: torch.Tensor, p: float, mode: str, training: bool = True) -> torch.Tensor:
    """Drops whole residual branches at random while training: one choice per batch, or one per row of it."""
    if not training or p == 0.0:
        return x
    size = [x.shape[0] if mode == "row" else 1] + [1] * (x.ndim - 1)
    noise = torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(1.0 - p)
    if p < 1.0:
        noise.div_(1.0 - p)
    return x * noise


_HELPERS: Mapping[str, Callable[..., torch.Tensor]] = {
    "torchvision.ops.stochastic_depth.stochastic_depth": stochastic_depth,
}


def helper_for(node: fx.Node) -> Callable[..., Any] | None:
    """Returns what stands for a node's function in source, if it is a Python function outside torch.

    A helper that was exported before, and traced again, stands for itself. Guards and records have forms of
    their own.
    """
    target = node.target
    if target is guard or makes_record(node):
        return None
    if node.op != "call_function" or not inspect.isfunction(target) or public_name(target) is not None:
        return None
    code = target.__code__
    for name, helper in _HELPERS.items():
        own = helper.__code__
        if name == _full_name(target) or (code.co_code, code.co_names) == (own.co_code, own.co_names):
            return helper
    return target


def helper_sources(graph: fx.Graph) -> dict[str, str]:
    """Returns name and source of every helper that the program needs, and of what these need.

    Raises:
        ExportError: if a function cannot be written out, or two have the same name.
    """
    leaves: dict[str, str] = {}
    others: dict[str, str] = {}
    for node in graph.nodes:
        helper = helper_for(node)
        if helper is not None:
            sources = _sources(helper, node)
            leaf = sources.pop(helper.__name__)
            if leaves.setdefault(helper.__name__, leaf) != leaf or not _agree(others, sources):
                raise _at(node, refusal(helper, "two functions of the program have the same name"))
            others.update(sources)
    return {**{name: text for name, text in others.items() if name not in leaves}, **leaves}


def _sources(helper: Callable[..., Any], node: fx.Node) -> dict[str, str]:
    if helper in _HELPERS.values():
        return {helper.__name__: inspect.getsource(helper).strip()}
    try:
        return inlined(helper)
    except ExportError as error:
        raise _at(node, error) from error


def _agree(known: Mapping[str, str], sources: Mapping[str, str]) -> bool:
    return all(known.get(name, text) == text for name, text in sources.items())


def _at(node: fx.Node, error: ExportError) -> ExportError:
    return ExportError(error.message, node=node.name, source=source_of(node), hint=error.hint)


def _full_name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
