"""Plain training and evaluation of a graph: one epoch, without waiting for the device inside a step.

Losses stay on the device and are read every few steps, all at once; that is also when a loss that is not
finite is found and the step named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn, optim
from torch.utils import _pytree as pytree

from morphir.errors import MorphirError
from morphir.ir.state import evaluation_mode
from morphir.runtime.learning.batches import (
    BatchError,
    batch_samples,
    in_batch,
    loss_of,
    outputs_of,
    pair_of,
)
from morphir.runtime.learning.loss_check import Loss

Batches = Iterable[tuple[Any, Any]]


def count_steps(data: Batches, limit: int | None = None) -> int | None:
    """Returns the number of batches in an epoch; None where the data does not say."""
    try:
        steps = len(data)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return limit
    return steps if limit is None else min(steps, limit)


class NonFiniteLossError(MorphirError):
    """The loss became NaN or infinite; the last checkpoint is from before that.

    Args:
        loss: Which loss it is, and its value.
        place: Step and epoch.
    """

    def __init__(self, loss: str, place: str) -> None:
        super().__init__(
            f"the {loss} {place}",
            hint="lower the learning rate; the last checkpoint holds the weights from before",
        )


@dataclass(frozen=True)
class Placement:
    """Where and how batches are computed.

    Attributes:
        device: Where the graph is.
        amp: Whether bfloat16 autocast is on.
        channels_last: Whether images are in channels-last memory format.
    """

    device: torch.device
    amp: bool = False
    channels_last: bool = False

    def move(self, tree: Any) -> Any:
        """Moves every tensor of a batch to the device."""
        return pytree.tree_map(self._move, tree)

    def _move(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if self.channels_last and leaf.dim() == 4:
            return leaf.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return leaf.to(self.device, non_blocking=True)

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)


def place(model: nn.Module, placement: Placement) -> None:
    """Moves a model to where its batches are computed, in their memory format."""
    model.to(placement.device)
    if placement.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def call(model: nn.Module, inputs: Any) -> Any:
    """Calls a model on a tensor, a tuple of positional or a mapping of keyword arguments.

    Raises:
        BatchError: if the batch is empty, or the model fails on it, as a batch norm does that trains on a
            single value of a channel, which has no variance.
    """
    return outputs_of(lambda: _checked_call(model, inputs), inputs)


def _checked_call(model: nn.Module, inputs: Any) -> Any:
    try:
        return _call(model, inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise BatchError(
            "batch norm cannot train on",
            f" ({batch_samples(inputs)} in it): {error}",
            hint="make the batches larger (batch_size)",
        ) from error


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**cast("Mapping[str, Any]", inputs))
    if isinstance(inputs, tuple | list):
        return model(*cast("tuple[Any, ...]", inputs))
    return model(inputs)


def mean_loss(loss: Loss, outputs: Any, targets: Any) -> torch.Tensor:
    """Returns the loss as a scalar, whether it is per sample or already a mean.

    Raises:
        BatchError: if it fails.
    """
    value = loss_of(loss, outputs, targets)
    return value if value.dim() == 0 else value.mean()


class LossMeter:
    """The mean of losses that are still on the device.

    Args:
        place: The epoch, for messages.
        check_every: Steps between two looks at the values.
        on_check: Called with the number of steps and the last loss after each look.
    """

    def __init__(
        self, place: str, check_every: int, on_check: Callable[[int, float], object] | None = None
    ) -> None:
        self.steps = 0
        self._place = place
        self._check_every = check_every
        self._on_check = on_check
        self._pending: list[torch.Tensor] = []
        self._sizes: list[int] = []
        self._total = 0.0
        self._samples = 0

    def add(self, loss: torch.Tensor, samples: int) -> None:
        """Notes one step's mean loss.

        Raises:
            NonFiniteLossError: at a look, if a loss since the last look is NaN or infinite; names its step.
        """
        self._pending.append(loss.detach())
        self._sizes.append(samples)
        self.steps += 1
        if self.steps % self._check_every == 0:
            self._read()

    @property
    def next_batch(self) -> str:
        """What the batch that comes next is called."""
        return f"batch {self.steps + 1} of {self._place}"

    def mean(self) -> float:
        """Returns the mean over all samples so far; waits for the device."""
        if self._pending:
            self._read()
        return self._total / max(self._samples, 1)

    def _read(self) -> None:
        values = _to_host(self._pending)
        first = self.steps - len(values) + 1
        for offset, (value, size) in enumerate(zip(values, self._sizes, strict=True)):
            if not -float("inf") < value < float("inf"):
                raise NonFiniteLossError(f"loss is {value}", f"at step {first + offset} of {self._place}")
            self._total += value * size
            self._samples += size
        self._pending.clear()
        self._sizes.clear()
        if self._on_check is not None:
            self._on_check(self.steps, values[-1])


def _to_host(losses: list[torch.Tensor]) -> list[float]:
    stacked: Any = torch.stack(losses).float().cpu()
    return stacked.tolist()


def train_epoch(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    optimizer: optim.Optimizer,
    placement: Placement,
    meter: LossMeter,
    on_step: Callable[[int], object] | None = None,
) -> None:
    """Trains for one pass over the data.

    Args:
        model: The graph, or any module; put in training mode.
        batches: Pairs of inputs and targets.
        loss: Of outputs and targets; per sample or mean.
        optimizer: Holds the model's parameters.
        placement: Device, autocast, memory format.
        meter: Gets every step's loss.
        on_step: Called with the step's number before each step, to set the learning rate.

    Raises:
        NonFiniteLossError: if a loss is not finite.
        BatchError: if a batch does not fit the model or the loss; names epoch and batch.
    """
    model.train()
    for step, batch in enumerate(batches):
        if on_step is not None:
            on_step(step)
        optimizer.zero_grad(set_to_none=True)
        with in_batch(meter.next_batch), placement.autocast():
            inputs, targets = placement.move(pair_of(batch))
            value = mean_loss(loss, call(model, inputs), targets)
        value.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()
        meter.add(value, batch_samples(inputs))


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on held-back data.

    Attributes:
        loss: Mean loss.
        error: Share of wrong classes in [0, 1]; None where targets are no classes.
        samples: Number of samples.
    """

    loss: float
    error: float | None
    samples: int

    def check_finite(self, place: str) -> None:
        """Raises :class:`NonFiniteLossError` if the loss is NaN or infinite.

        Args:
            place: The epoch, for the message.
        """
        if not math.isfinite(self.loss):
            raise NonFiniteLossError(f"test loss is {self.loss}", f"after {place}")


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, loss: Loss, placement: Placement) -> Evaluation:
    """Evaluates a model in evaluation mode, and puts it back in its own."""
    losses: list[torch.Tensor] = []
    wrong: list[torch.Tensor] = []
    sizes: list[int] = []
    with evaluation_mode(model):
        for number, batch in enumerate(batches, 1):
            with in_batch(f"batch {number} of the evaluation data"), placement.autocast():
                inputs, targets = placement.move(pair_of(batch))
                outputs = call(model, inputs)
                losses.append(mean_loss(loss, outputs, targets))
            if are_classes(outputs, targets):
                wrong.append((outputs.argmax(1) != targets).sum())
            sizes.append(batch_samples(inputs))
    if not sizes:
        raise MorphirError("the evaluation data is empty")
    samples = sum(sizes)
    mean = sum(v * n for v, n in zip(_to_host(losses), sizes, strict=True)) / samples
    error = int(torch.stack(wrong).sum()) / samples if wrong else None
    return Evaluation(mean, error, samples)


def are_classes(outputs: Any, targets: Any) -> bool:
    """Whether outputs ``[N, K]`` are logits of integer targets ``[N]``."""
    return (
        isinstance(outputs, torch.Tensor)
        and isinstance(targets, torch.Tensor)
        and outputs.dim() == 2
        and targets.dim() == 1
        and not targets.is_floating_point()
        and not targets.is_complex()
    )
