"""What moves theta: Adam, and Adam with one second moment for each channel's kernel.

The learning rate is relative to each theta's kernel. Gradients are used up as they come.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch

from morphir.errors import MorphirError
from morphir.runtime.learning.theta import Theta

ThetaOptimizerName = Literal["adam-mini", "adam"]

_BETAS = 0.9, 0.999
_EPS = 1e-8
_vector_norm = cast("Any", torch.linalg).vector_norm
_FUSED_ADAM = frozenset({"cpu", "cuda", "mps", "xpu"})
_GRADIENT_SHARES = 8
"""Thetas are moved as soon as so small a share of all gradients is there: they need not all be held."""
_FEW_GRADIENTS = 1 << 20
"""So many numbers may always be held: each move costs time."""


class ThetaOptimizer(ABC):
    """Moves thetas against their gradients.

    Args:
        thetas: What it moves.
        lr: The learning rate, relative to each kernel's root mean square.
        absolute: Take ``lr`` as it is for every kernel.
    """

    def __init__(self, thetas: Sequence[Theta], lr: float, *, absolute: bool) -> None:
        self.lr = lr
        self._absolute = absolute
        self._waiting: dict[str, Theta] = {}
        self._numbers_waiting = 0
        size = sum(theta.value.numel() for theta in thetas)
        self._most_waiting = max(size // _GRADIENT_SHARES, _FEW_GRADIENTS)

    def take(self, thetas: Mapping[str, Theta], gradients: Mapping[str, torch.Tensor]) -> None:
        """Takes gradients by parameter, and moves thetas once there are many."""
        for parameter, gradient in gradients.items():
            theta = thetas[parameter]
            theta.set_gradient(gradient)
            self._waiting[theta.key] = theta
            self._numbers_waiting += gradient.numel()
        if self._numbers_waiting > self._most_waiting:
            self.move()

    def move(self) -> None:
        """Uses up the gradients that are there; passes over thetas without one."""
        if self._waiting:
            self._move(list(self._waiting.values()))
        self.drop()

    def drop(self) -> None:
        """Forgets the gradients that are there, of a step that failed."""
        for theta in self._waiting.values():
            theta.value.grad = None
        self._waiting = {}
        self._numbers_waiting = 0

    @abstractmethod
    def moments(self, theta: Theta) -> Mapping[str, torch.Size]:
        """Returns the shapes of one theta's moments by name."""

    @abstractmethod
    def state(self, theta: Theta) -> dict[str, torch.Tensor]:
        """Returns one theta's step count and moments; empty before its first move."""

    @abstractmethod
    def load(self, theta: Theta, state: Mapping[str, torch.Tensor]) -> None:
        """Sets one theta's step count and moments from a copy of :meth:`state`, of any format and device."""

    @abstractmethod
    def _move(self, thetas: Sequence[Theta]) -> None: ...

    def _unit(self, theta: Theta) -> float:
        return 1.0 if self._absolute else theta.unit


class Adam(ThetaOptimizer):
    """Adam (Kingma and Ba 2015): a first and a second moment for every entry; what the paper learns with."""

    def __init__(self, thetas: Sequence[Theta], lr: float, *, absolute: bool) -> None:
        super().__init__(thetas, lr, absolute=absolute)
        units: dict[float, list[torch.Tensor]] = {}
        for theta in thetas:
            units.setdefault(self._unit(theta), []).append(theta.value)
        groups = [{"params": values, "lr": lr * unit, "unit": unit} for unit, values in units.items()]
        fused = bool(thetas) and thetas[0].value.device.type in _FUSED_ADAM
        self._adam = torch.optim.Adam(groups, betas=_BETAS, eps=_EPS, fused=fused) if thetas else None

    def moments(self, theta: Theta) -> Mapping[str, torch.Size]:
        """Two of theta's shape."""
        return {"exp_avg": theta.value.shape, "exp_avg_sq": theta.value.shape}

    def state(self, theta: Theta) -> dict[str, torch.Tensor]:
        """As torch's Adam keeps it."""
        return {} if self._adam is None else dict(self._adam.state.get(theta.value, {}))

    def load(self, theta: Theta, state: Mapping[str, torch.Tensor]) -> None:
        """Keeps nothing where the state has nothing."""
        if self._adam is None:
            return
        self._adam.state.pop(theta.value, None)
        if not state:
            return
        copies = {name: value.to(theta.value.device, copy=True) for name, value in state.items()}
        moments = {name: theta.laid_out(copies[name]) for name in self.moments(theta)}
        self._adam.state[theta.value] = {"step": copies["step"], **moments}

    def _move(self, thetas: Sequence[Theta]) -> None:
        del thetas  # Adam passes over what has no gradient
        assert self._adam is not None
        for group in self._adam.param_groups:
            group["lr"] = self.lr * group["unit"]
        cast("Any", self._adam).step()


class _ChannelMoments:
    """One theta's moments.

    Attributes:
        step: How often it was moved.
        first: Average of its gradients, as theta.
        second: For every output channel, average of the mean square of its kernel's gradient, as theta with
            all other axes of size 1.
    """

    def __init__(self, theta: Theta, shape: torch.Size) -> None:
        self.step = 0
        self.first = torch.zeros_like(theta.value, requires_grad=False)
        self.second = theta.value.new_zeros(shape)


class AdamMini(ThetaOptimizer):
    """Adam with one second moment for the kernel of each output channel (Adam-mini, Zhang et al. 2024).

    A split's theta is a problem of its own, and each of its kernels has a step size of its own: within a
    kernel the gradient's direction is kept. Half of Adam's moments are not there.
    """

    def __init__(self, thetas: Sequence[Theta], lr: float, *, absolute: bool) -> None:
        super().__init__(thetas, lr, absolute=absolute)
        self._moments: dict[str, _ChannelMoments] = {}

    def moments(self, theta: Theta) -> Mapping[str, torch.Size]:
        """One of theta's shape, one number for each output channel."""
        sizes = [n if axis == theta.out_axis else 1 for axis, n in enumerate(theta.value.shape)]
        return {"exp_avg": theta.value.shape, "exp_avg_sq": torch.Size(sizes)}

    def state(self, theta: Theta) -> dict[str, torch.Tensor]:
        """A step count and both moments."""
        own = self._moments.get(theta.key)
        if own is None:
            return {}
        return {"step": torch.tensor(float(own.step)), "exp_avg": own.first, "exp_avg_sq": own.second}

    def load(self, theta: Theta, state: Mapping[str, torch.Tensor]) -> None:
        """Keeps nothing where the state has nothing."""
        self._moments.pop(theta.key, None)
        if not state:
            return
        own = self._of(theta)
        own.step = int(state["step"])
        own.first.copy_(state["exp_avg"])
        own.second.copy_(state["exp_avg_sq"])

    @torch.no_grad()
    def _move(self, thetas: Sequence[Theta]) -> None:
        own = [self._of(theta) for theta in thetas]
        gradients = [cast("torch.Tensor", theta.value.grad) for theta in thetas]
        norms, values = list(map(_norm, thetas, gradients)), [theta.value for theta in thetas]
        first, second = [moments.first for moments in own], [moments.second for moments in own]
        sizes = [
            max(value.numel() // max(moment.numel(), 1), 1)
            for value, moment in zip(values, second, strict=True)
        ]
        for moments in own:
            moments.step += 1
        # On lists, as PyTorch's own optimizers do: for most thetas calls cost more than the work.
        each = cast("Any", torch)
        each._foreach_lerp_(first, gradients, 1 - _BETAS[0])
        each._foreach_mul_(second, _BETAS[1])
        each._foreach_addcmul_(second, norms, norms, [(1 - _BETAS[1]) / size for size in sizes])
        scales = each._foreach_sqrt(second)
        each._foreach_div_(scales, [math.sqrt(1 - _BETAS[1] ** moments.step) for moments in own])
        each._foreach_add_(scales, _EPS)
        each._foreach_reciprocal_(scales)
        rates = [
            -self.lr * self._unit(theta) / (1 - _BETAS[0] ** moments.step)
            for theta, moments in zip(thetas, own, strict=True)
        ]
        each._foreach_addcmul_(values, first, scales, rates)

    def _of(self, theta: Theta) -> _ChannelMoments:
        found = self._moments.get(theta.key)
        if found is None:
            found = self._moments[theta.key] = _ChannelMoments(theta, self.moments(theta)["exp_avg_sq"])
        return found


_OPTIMIZERS: Mapping[ThetaOptimizerName, type[ThetaOptimizer]] = {"adam-mini": AdamMini, "adam": Adam}


def theta_optimizer(name: str) -> type[ThetaOptimizer]:
    """Returns an optimizer of theta by its name.

    Raises:
        MorphirError: for an unknown name.
    """
    if name not in get_args(ThetaOptimizerName):
        raise MorphirError(
            f"unknown optimizer of theta {name!r}", hint=f"one of {', '.join(get_args(ThetaOptimizerName))}"
        )
    return _OPTIMIZERS[cast("ThetaOptimizerName", name)]


def _norm(theta: Theta, gradient: torch.Tensor) -> torch.Tensor:
    """Returns the norm of each output channel's kernel; all other axes stay with size 1."""
    axes = [axis for axis in range(gradient.dim()) if axis != theta.out_axis]
    # No axes would mean all to vector_norm.
    return _vector_norm(gradient, dim=axes, keepdim=True) if axes else gradient.abs()
