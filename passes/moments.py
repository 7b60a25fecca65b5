"""Optimizer state follows the chain rule.

A gradient that is scaled by f after a rewrite scales a first moment by f and a second moment by f squared.
Which entry of an optimizer's state is which moment is the table below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn, optim

from morphir.errors import RewriteError

_ADAM: Mapping[str, int] = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}

# Optimizer class to {state entry: power of the gradient that it accumulates}.
MOMENTS: Mapping[type[optim.Optimizer], Mapping[str, int]] = {
    optim.SGD: {"momentum_buffer": 1},
    optim.Adam: _ADAM,
    optim.AdamW: _ADAM,
    optim.NAdam: _ADAM,
    optim.RAdam: _ADAM,
    optim.Adamax: {"exp_avg": 1, "exp_inf": 1},
    optim.RMSprop: {"square_avg": 2, "grad_avg": 1, "momentum_buffer": 0},
    optim.Adagrad: {"sum": 2},
}


def check_optimizer(optimizer: object, graph: nn.Module) -> None:
    """Raises :class:`RewriteError` if the optimizer is not the graph's, or its kind of state is unknown."""
    if not isinstance(optimizer, optim.Optimizer):
        raise RewriteError(
            f"the optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer",
            hint="pass the optimizer itself, as torch.optim.SGD(graph.parameters(), lr=0.05)",
        )
    own = {id(parameter) for parameter in graph.parameters()}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if own and not own & held:
        raise RewriteError(
            "the optimizer holds no parameter of this graph",
            hint="build it from graph.parameters(): trace() copies the model's parameters",
        )
    _powers(optimizer)


def _powers(optimizer: optim.Optimizer) -> Mapping[str, int]:
    for kind in type(optimizer).__mro__:
        if kind in MOMENTS:
            return MOMENTS[kind]
    raise RewriteError(
        f"MorphIR does not know the state of {type(optimizer).__name__}",
        hint=f"add it to passes.moments.MOMENTS; known are {', '.join(kind.__name__ for kind in MOMENTS)}",
    )


def powers_of(optimizer: optim.Optimizer, parameter: nn.Parameter) -> dict[str, int]:
    """Returns, for every state entry of the parameter's shape, the power of the gradient that it accumulates.

    Raises:
        RewriteError: for an entry of the parameter's shape whose meaning is unknown.
    """
    powers = _powers(optimizer)
    found: dict[str, int] = {}
    for name, value in _state(optimizer, parameter).items():
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.dim() > 0:
            if name not in powers:
                raise RewriteError(
                    f"{type(optimizer).__name__} has an unknown state entry {name!r} of a parameter's shape",
                    hint="add it to passes.moments.MOMENTS",
                )
            found[name] = powers[name]
    return found


def _state(optimizer: optim.Optimizer, parameter: nn.Parameter) -> Mapping[str, Any]:
    return optimizer.state.get(parameter, {})


def replace_parameters(
    optimizer: optim.Optimizer,
    new_of: Mapping[nn.Parameter, nn.Parameter],
    state_of: Mapping[nn.Parameter, Mapping[str, Any]],
) -> None:
    """Points the same optimizer object at new parameters.

    Args:
        optimizer: The user's optimizer.
        new_of: Old parameter to new parameter.
        state_of: Old parameter to the new parameter's state.
    """
    for group in optimizer.param_groups:
        group["params"] = [new_of.get(parameter, parameter) for parameter in group["params"]]
    for old, new in new_of.items():
        if old in optimizer.state:
            del optimizer.state[old]
            optimizer.state[new] = dict(state_of[old])
