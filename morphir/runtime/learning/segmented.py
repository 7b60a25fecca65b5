"""A program run as segments, and its derivatives: its vector-Jacobian product goes through them backwards.

Kernels compute it themselves, from their inputs alone; convolutions have derivatives of their own; what else
is between kernels has autograd's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import fx, nn

from morphir.runtime.learning.compilation import Call
from morphir.runtime.learning.segments import Segment, cut


@dataclass(frozen=True)
class Evaluation:
    """One run of a segmented program.

    Attributes:
        outputs: What it returned, but for the scalar.
        gradients: The derivatives of the scalar by the inputs that it is differentiated by; some of them in
            these inputs' places.
    """

    outputs: Sequence[torch.Tensor]
    gradients: Sequence[torch.Tensor]


class Segmented:
    """A program as segments.

    Args:
        program: The program: placeholders first, then calls; the last of what it returns is a scalar, which
            nothing else reads.
        root: Where its modules are found.
        active: The placeholders to differentiate by.
        example: Values of the placeholders; on these the program is run once, to see what its nodes do.

    Raises:
        NotSegmentedError: if the program cannot be cut.
    """

    def __init__(
        self,
        program: fx.Graph,
        root: nn.Module,
        active: Sequence[fx.Node],
        example: Sequence[Any],
    ) -> None:
        nodes = list(program.nodes)
        slot = {node: number for number, node in enumerate(nodes)}
        returned = [slot[node] for node in cast("Sequence[fx.Node]", nodes[-1].args[0])]
        self._count = len(nodes)
        self._active = [slot[node] for node in active]
        *self._returned, self._scalar = returned
        self._segments = cut(program, root, active, example)
        last = self._segments[-1]
        moving = [last.outputs[position] for position in last.moving]
        self._at_once = last.kernels is not None and self._scalar in moving

    def serving(self) -> Callable[[Sequence[Any]], Evaluation]:
        """Returns what runs the program on inputs of one signature; autograd records nothing of it."""
        return partial(self._run, [_Served() for _ in self._segments])

    def _run(self, served: Sequence[_Served], inputs: Sequence[Any]) -> Evaluation:
        values: list[Any] = [*inputs, *[None] * (self._count - len(inputs))]
        runs: list[_Run] = []
        whole = len(self._segments) - self._at_once
        for segment, calls in zip(self._segments[:whole], served, strict=False):
            run = _Run.of(segment, calls, [values[slot] for slot in segment.inputs])
            runs.append(run)
            for slot, value in zip(segment.outputs, run.outputs, strict=True):
                recorded = isinstance(value, torch.Tensor) and value.requires_grad
                values[slot] = value.detach() if recorded else value
        known = self._run_last(served[-1], values) if self._at_once else self._start(values)
        for run in reversed(runs):
            run.pull(known)
        gradients = [
            known[slot] if slot in known else torch.zeros_like(values[slot]) for slot in self._active
        ]
        return Evaluation([values[slot] for slot in self._returned], gradients)

    def _start(self, values: list[Any]) -> dict[int, torch.Tensor]:
        return {self._scalar: torch.ones_like(values[self._scalar])}

    def _run_last(self, served: _Served, values: list[Any]) -> dict[int, torch.Tensor]:
        """Runs the last segment, a kernel, and the scalar back through it, at once."""
        segment = self._segments[-1]
        assert segment.kernels is not None
        inputs = [values[slot] for slot in segment.inputs]
        served.last = served.last or segment.kernels.last.serving(inputs)
        found, others = served.last(*inputs), segment.outputs[:-1]
        for slot, value in zip(others, found, strict=False):
            values[slot] = value
        gradients = _gradients(segment, inputs, found[len(others) :])
        return dict(zip([segment.inputs[position] for position in segment.active], gradients, strict=True))


@dataclass
class _Served:
    """The kernels that serve a segment on inputs of one signature, as soon as they are known.

    These decide the types, extents and strides of everything in between; so does autocast, which is on or
    off for all runs of one program.
    """

    forward: Call | None = None
    vjp: Call | None = None
    last: Call | None = None


@dataclass(frozen=True)
class _Run:
    """One segment's run."""

    segment: Segment
    served: _Served
    inputs: Sequence[Any]
    outputs: Sequence[Any]

    @staticmethod
    def of(segment: Segment, served: _Served, inputs: list[Any]) -> _Run:
        if segment.kernels is not None:
            served.forward = served.forward or segment.kernels.forward.serving(inputs)
            return _Run(segment, served, inputs, served.forward(*inputs))
        if segment.convolutions:
            return _Run(
                segment, served, inputs, [own.module(inputs[own.source]) for own in segment.convolutions]
            )
        with torch.enable_grad():
            for position in segment.active:
                inputs[position] = inputs[position].detach().requires_grad_()
            return _Run(segment, served, inputs, segment.program(*inputs))

    def pull(self, known: dict[int, torch.Tensor]) -> None:
        """Turns the gradients by its outputs into those by its inputs."""
        segment = self.segment
        moving = [position for position in segment.moving if segment.outputs[position] in known]
        if not moving or not segment.active:
            return
        for position, gradient in zip(segment.active, self._product(known, moving), strict=True):
            slot = segment.inputs[position]
            if gradient is not None:
                known[slot] = known[slot] + gradient if slot in known else gradient

    def _product(
        self, known: Mapping[int, torch.Tensor], moving: Sequence[int]
    ) -> Sequence[torch.Tensor | None]:
        segment = self.segment
        if segment.kernels is not None:
            outputs = [(segment.outputs[position], self.outputs[position]) for position in segment.moving]
            given = [known[slot] if slot in known else torch.zeros_like(value) for slot, value in outputs]
            values = [*self.inputs, *given]
            self.served.vjp = self.served.vjp or segment.kernels.vjp.serving(values)
            return _gradients(segment, self.inputs, self.served.vjp(*values))
        if segment.convolutions:
            return self._back(known)
        reached = [position for position in moving if self.outputs[position].requires_grad]
        if not reached:
            return [None] * len(segment.active)
        return torch.autograd.grad(
            [self.outputs[position] for position in reached],
            [self.inputs[position] for position in segment.active],
            [known[segment.outputs[position]] for position in reached],
            allow_unused=True,
        )

    def _back(self, known: Mapping[int, torch.Tensor]) -> list[torch.Tensor | None]:
        """Returns the gradients by the active inputs of convolutions."""
        segment, found = self.segment, dict[int, torch.Tensor]()
        for own in segment.convolutions:
            slot = segment.outputs[own.output]
            if slot in known:
                gradient = own.gradient(self.inputs[own.source], known[slot])
                before = found.get(own.source)
                found[own.source] = gradient if before is None else before + gradient
        return [found.get(position) for position in segment.active]


def _gradients(segment: Segment, inputs: Sequence[Any], found: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the gradients by the active inputs, of which a kernel wrote some over the inputs."""
    if not segment.spent:
        return list(found)
    returned = iter(found)
    return [inputs[at] if at in segment.spent else next(returned) for at in segment.active]
