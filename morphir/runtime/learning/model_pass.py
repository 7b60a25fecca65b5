"""One pass of the model: forward, loss, and each tap's gradient handed on as it arrives.

A space is worked on as soon as the gradients at all its edges are there, and what only it needed is freed at
once, so that a learning step holds no more than a training step does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from morphir.errors import MorphirError
from morphir.runtime.learning.batches import leading_extent, leading_extents, loss_of, outputs_of
from morphir.runtime.learning.curvature import BatchLosses
from morphir.runtime.learning.fisher import sampled_logit_gradient
from morphir.runtime.learning.image_layout import run_channels_last
from morphir.runtime.learning.loss_check import Loss
from morphir.runtime.learning.precision import autocast_dtype
from morphir.runtime.learning.programs import Lowered, SpaceProgram

_LOSS_HINT = "return one loss a sample, [S], or their mean"


@dataclass(frozen=True)
class Pass:
    """The model on one batch.

    Attributes:
        captured: Every captured value, detached; None once no space needs it.
        samples: S.
        losses: The batch's losses.
        gradients: By tap, the gradient of the *summed* loss; a missing one is 0.
        sampled: The same for the sampled square root of the Fisher; None where no curvature asks for
            it.
    """

    captured: list[Any]
    samples: int
    losses: BatchLosses
    gradients: dict[int, torch.Tensor]
    sampled: dict[int, torch.Tensor] | None


@dataclass(frozen=True)
class Forward:
    """A pass whose gradients have not been asked for yet.

    Attributes:
        run: The pass; it has no gradients yet.
        outputs: The model's outputs.
        loss: What the loss function returned.
        taps: The taps by slot.
    """

    run: Pass
    outputs: Any
    loss: torch.Tensor
    taps: Mapping[int, torch.Tensor]


def run_forward(lowered: Lowered, inputs: Sequence[Any], targets: Any, loss: Loss) -> Forward:
    """Runs the instrumented program and the loss.

    Args:
        lowered: The lowered graph.
        inputs: The model's arguments in order.
        targets: What ``loss`` takes beside the outputs.
        loss: Returns one loss a sample or their mean.

    Raises:
        MorphirError: if the batch does not fit the model or the loss, or the loss is none.
    """
    for derived in lowered.derived:
        derived.refresh()
    with torch.enable_grad():
        outputs, captured = outputs_of(lambda: _run(lowered, lowered.program, inputs), inputs)
        value = _loss_value(loss_of(loss, outputs, targets), inputs)
    if lowered.taps and not value.requires_grad:
        raise MorphirError(
            "the loss does not depend on the model's outputs through autograd",
            hint="do not detach the outputs, and do not compute the loss under torch.no_grad()",
        )
    samples = value.shape[0] if value.dim() else _batch_size(inputs)
    taps = {slot: captured[slot] for slot in lowered.taps}
    run = Pass(list(map(detached, captured)), samples, _batch_losses(value), {}, None)
    return Forward(run, outputs, value, taps)


def losses_of(
    program: Callable[..., Any], lowered: Lowered, inputs: Sequence[Any], targets: Any, loss: Loss
) -> torch.Tensor:
    """Returns what the loss function makes of a program's outputs, ``[S]`` or a scalar.

    Args:
        program: Returns the outputs alone.
        lowered: The lowered graph.
        inputs: The model's arguments in order.
        targets: What ``loss`` takes beside the outputs.
        loss: The loss function.
    """
    outputs = outputs_of(lambda: _run(lowered, program, inputs), inputs)
    return _loss_value(loss_of(loss, outputs, targets), inputs)


def _run(lowered: Lowered, program: Callable[..., Any], inputs: Sequence[Any]) -> Any:
    return run_channels_last(program, inputs) if lowered.channels_last else program(*inputs)


def run_backward(
    forward: Forward,
    lowered: Lowered,
    targets: Any,
    generator: torch.Generator | None,
    work: Callable[[SpaceProgram, Pass], None],
    *,
    sample: bool = False,
) -> None:
    """Computes the taps' gradients, and calls ``work`` for each space as soon as its own are there.

    Args:
        forward: The forward pass.
        lowered: The lowered graph.
        targets: The batch's targets.
        generator: Draws the Fisher's random signs.
        work: What to do with a space; must not change the gradients that it finds in the pass.
        sample: Whether to backpropagate the Fisher's random signs too.
    """
    run, loss = replace(forward.run, sampled={} if sample else None), forward.loss
    whole = torch.full_like(loss, 1 if loss.dim() else run.samples)
    arrivals = _Arrivals(lowered, run, work)
    if run.sampled is None or not forward.taps:
        _stream(loss, whole, forward.taps, run.gradients, arrivals)
    else:
        logit_gradient = sampled_logit_gradient(forward.outputs, targets, loss, whole, generator)
        slots, taps = list(forward.taps), list(forward.taps.values())
        found = cast(
            "Sequence[torch.Tensor | None]",
            torch.autograd.grad(loss, taps, whole, retain_graph=True, allow_unused=True),
        )
        run.gradients.update({slot: g for slot, g in zip(slots, found, strict=True) if g is not None})
        _stream(forward.outputs, logit_gradient, forward.taps, run.sampled, arrivals)
    arrivals.finish()


def detached(values: Any) -> Any:
    """Detaches every tensor of a structure."""
    if isinstance(values, torch.Tensor):
        return values.detach() if values.requires_grad else values
    return pytree.tree_map_only(torch.Tensor, detached, values)


class _Arrivals:
    """Counts the gradients that each space waits for, and the spaces that still need each value."""

    def __init__(self, lowered: Lowered, run: Pass, work: Callable[[SpaceProgram, Pass], None]) -> None:
        self.run = run
        self.work = work
        self.waiting = lowered.waiting
        self.missing = {space.name: len(space.taps) for space in lowered.spaces}
        self.unfinished = {space.name: space for space in lowered.spaces}
        self.needed = dict(lowered.needed)
        self.autocast = _ambient_autocast(run.losses.mean.device)

    def arrived(self, slot: int) -> None:
        for space in self.waiting[slot]:
            self.missing[space.name] -= 1
            if not self.missing[space.name]:
                self._finish(space)

    def finish(self) -> None:
        """Works on the spaces that the loss depends on in part, or not at all."""
        for space in list(self.unfinished.values()):
            self._finish(space)

    def _finish(self, space: SpaceProgram) -> None:
        del self.unfinished[space.name]
        # The engine may call from a thread of its own, which does not know the caller's autocast.
        with self.autocast():
            self.work(space, self.run)
        for slot in space.slots:
            self.needed[slot] -= 1
            if not self.needed[slot]:
                self.run.captured[slot] = None
                self.run.gradients.pop(slot, None)
                if self.run.sampled is not None:
                    self.run.sampled.pop(slot, None)


def _stream(
    output: torch.Tensor,
    gradient: torch.Tensor,
    taps: Mapping[int, torch.Tensor],
    store: dict[int, torch.Tensor],
    arrivals: _Arrivals,
) -> None:
    """Backpropagates, and hands each tap's gradient on when it is there."""
    leaves = [tensor for tensor in taps.values() if tensor.is_leaf]

    def receive(slot: int) -> Callable[[torch.Tensor], None]:
        def hook(arriving: torch.Tensor) -> None:
            store[slot] = arriving
            arrivals.arrived(slot)

        return hook

    for slot, tensor in taps.items():
        cast("Any", tensor).register_hook(receive(slot))
    if leaves:
        torch.autograd.backward(output, gradient, inputs=leaves)


def _ambient_autocast(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    kind, dtype = device.type, autocast_dtype(device.type)
    if dtype is None:
        return nullcontext
    return lambda: torch.autocast(kind, dtype=dtype, cache_enabled=False)


def _batch_size(inputs: Sequence[Any]) -> int:
    found = leading_extent(list(inputs))
    if found is None:
        raise MorphirError("the inputs hold no tensor with a batch dimension")
    return found


def _loss_value(loss: object, inputs: Sequence[Any]) -> torch.Tensor:
    """Returns one loss a sample, ``[S]``, or their mean as a scalar, whatever its own shape.

    Raises:
        MorphirError: if the loss is neither.
    """
    if not isinstance(loss, torch.Tensor):
        raise MorphirError(f"the loss is no tensor but {type(loss).__name__}", hint=_LOSS_HINT)
    extents = leading_extents(inputs)
    if loss.numel() == 1 and extents != {1}:
        return loss.reshape(())
    if loss.dim() > 1 or (loss.dim() and loss.shape[0] not in extents):
        raise MorphirError(
            f"the loss of {_batch_size(inputs)} samples has shape {tuple(loss.shape)}", hint=_LOSS_HINT
        )
    return loss


def _batch_losses(loss: torch.Tensor) -> BatchLosses:
    value = loss.detach()
    return BatchLosses(value.mean(), value) if value.dim() else BatchLosses(value, None)
