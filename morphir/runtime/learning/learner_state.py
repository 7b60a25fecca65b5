"""A learner's state under flat names: every theta, and what its optimizer remembers of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from morphir.errors import MorphirError
from morphir.runtime.learning.theta import Theta
from morphir.runtime.learning.theta_optimizer import ThetaOptimizer

State = Mapping[str, torch.Tensor | float]
"""Tensors and plain numbers by name."""


def tensor_of(state: State, key: str) -> torch.Tensor:
    """Returns a tensor of a state that is known to fit."""
    return cast("torch.Tensor", state[key])


def theta_state(thetas: Sequence[Theta], optimizer: ThetaOptimizer) -> dict[str, torch.Tensor]:
    """Returns copies: ``theta/...`` and, of a theta that was moved, ``adam/.../...``."""
    state = {f"theta/{theta.key}": theta.value.detach().clone() for theta in thetas}
    for theta in thetas:
        own = optimizer.state(theta).items()
        state |= {_remembered(name, theta): value.clone() for name, value in own}
    return state


def load_theta_state(thetas: Sequence[Theta], optimizer: ThetaOptimizer, state: State) -> None:
    """Continues from :func:`theta_state`, of any memory format and device; its names and shapes fit."""
    for theta in thetas:
        with torch.no_grad():
            theta.value.copy_(tensor_of(state, f"theta/{theta.key}"))
            names = {name: _remembered(name, theta) for name in ("step", *optimizer.moments(theta))}
            optimizer.load(theta, {n: tensor_of(state, k) for n, k in names.items() if k in state})


def check_fits(
    state: State, shapes: Mapping[str, torch.Size], thetas: Sequence[Theta], optimizer: ThetaOptimizer
) -> None:
    """Checks that a state is of these thetas and this optimizer.

    Args:
        state: What is to be loaded.
        shapes: What else it has to have: names of tensors, and their shapes.
        thetas: Every theta.
        optimizer: What moves them.

    Raises:
        MorphirError: if something is missing, of another shape or of another theta; names it.
    """
    required = {f"theta/{theta.key}": theta.value.shape for theta in thetas} | dict(shapes)
    for theta in thetas:
        # Before its first move a theta has no moments; else it has all of them.
        own = {_remembered(name, theta): shape for name, shape in optimizer.moments(theta).items()}
        own[_remembered("step", theta)] = torch.Size()
        required |= own if any(key in state for key in own) else {}
    given = {key: value.shape for key, value in state.items() if isinstance(value, torch.Tensor)}
    known = [key for key in given if key in required or key.startswith("theta/")]
    wrong = {key for key in {*required, *known} if required.get(key) != given.get(key)}
    wrong |= {key for key in ("steps", "weight") if key not in state}
    if wrong:
        raise MorphirError(
            "this learner state is of another graph, optimizer of theta or version of MorphIR: "
            f"{', '.join(sorted(wrong))}",
            hint="load it into a learner like the one that it was saved from, by the version that saved it",
        )


def _remembered(name: str, theta: Theta) -> str:
    return f"adam/{name}/{theta.key}"
