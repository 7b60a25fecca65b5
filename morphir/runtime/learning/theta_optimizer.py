"""Adam on all thetas, with a learning rate relative to each theta's kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from morphir.runtime.learning.theta import Theta

_FUSED_ADAM = frozenset({"cpu", "cuda", "mps", "xpu"})
_MOMENTS = ("exp_avg", "exp_avg_sq")
_GRADIENT_SHARES = 8
"""Adam moves thetas as soon as so small a share of all gradients is there: they need not all be held."""
_FEW_GRADIENTS = 1 << 20
"""So many numbers may always be held: each call of Adam costs time."""


class ThetaOptimizer:
    """Adam with one group of thetas for each unit of the learning rate; it uses gradients up as they come.

    Args:
        thetas: What it moves.
        lr: The learning rate, relative to each kernel's root mean square.
        absolute: Take ``lr`` as it is for every kernel.
    """

    def __init__(self, thetas: Sequence[Theta], lr: float, *, absolute: bool) -> None:
        self._lr = lr
        self._adam = _adam(thetas, lr, absolute=absolute) if thetas else None
        self._waiting = 0
        size = sum(theta.value.numel() for theta in thetas)
        self._most_waiting = max(size // _GRADIENT_SHARES, _FEW_GRADIENTS)

    @property
    def lr(self) -> float:
        """The learning rate, in the unit that it was made with."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr = lr
        for group in [] if self._adam is None else self._adam.param_groups:
            group["lr"] = lr * group["unit"]

    def take(self, thetas: Mapping[str, Theta], gradients: Mapping[str, torch.Tensor]) -> None:
        """Takes gradients by parameter, and moves thetas once there are many."""
        for parameter, gradient in gradients.items():
            thetas[parameter].set_gradient(gradient)
            self._waiting += gradient.numel()
        if self._waiting > self._most_waiting:
            self.move()

    def move(self) -> None:
        """Lets Adam use up the gradients that are there; it passes over thetas without one."""
        self._waiting = 0
        if self._adam is not None:
            cast("Any", self._adam).step()
            self._adam.zero_grad(set_to_none=True)

    def state(self, theta: Theta) -> dict[str, torch.Tensor]:
        """Returns one theta's step count and moments; empty before its first move."""
        return {} if self._adam is None else dict(self._adam.state.get(theta.value, {}))

    def load(self, theta: Theta, state: Mapping[str, torch.Tensor]) -> None:
        """Sets one theta's step count and moments from :meth:`state`, of any memory format."""
        if self._adam is None or not state:
            return
        copies = {name: value.to(theta.value.device, copy=True) for name, value in state.items()}
        moments = {name: theta.laid_out(copies[name]) for name in _MOMENTS}
        self._adam.state[theta.value] = {"step": copies["step"], **moments}


def _adam(thetas: Sequence[Theta], lr: float, *, absolute: bool) -> torch.optim.Adam:
    """Returns Adam with one group of thetas for each unit of the learning rate."""
    units: dict[float, list[torch.Tensor]] = {}
    for theta in thetas:
        units.setdefault(1.0 if absolute else theta.unit, []).append(theta.value)
    groups = [{"params": values, "lr": lr * unit, "unit": unit} for unit, values in units.items()]
    return torch.optim.Adam(groups, fused=thetas[0].value.device.type in _FUSED_ADAM)
