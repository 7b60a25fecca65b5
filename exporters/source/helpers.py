"""Functions of other libraries that a trace keeps whole, as exported source spells them out.

Their own source is what is exported, so they read nothing but torch and their arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import fx


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


def full_name(target: object) -> str:
    """Returns the module and name where a function was defined."""
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"


def helper_for(node: fx.Node) -> Callable[..., torch.Tensor] | None:
    """Returns what stands for a node's function in source, if it is such a function.

    A helper that was exported before, and traced again, stands for itself.
    """
    if node.op != "call_function":
        return None
    if full_name(node.target) in _HELPERS:
        return _HELPERS[full_name(node.target)]
    code = getattr(node.target, "__code__", None)
    for helper in _HELPERS.values():
        if code is not None and (code.co_code, code.co_names) == (
            helper.__code__.co_code,
            helper.__code__.co_names,
        ):
            return helper
    return None


def helper_sources(graph: fx.Graph) -> dict[str, str]:
    """Returns name and source of every helper that the program needs."""
    helpers = {helper.__name__: helper for node in graph.nodes if (helper := helper_for(node)) is not None}
    return {name: _source(helper) for name, helper in sorted(helpers.items())}


def _source(helper: Callable[..., torch.Tensor]) -> str:
    return inspect.getsource(helper).strip()
