"""A program run as segments, and its derivatives: its vector-Jacobian product goes through them backwards.

Kernels compute it themselves, from their inputs alone; convolutions have derivatives of their own; what else
is between kernels has autograd's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from morphir.runtime.learning.compilation import Call, signature
from morphir.runtime.learning.segments import Segment, cut


@dataclass(frozen=True)
class Evaluation:
    """One run of a segmented program.

    Attributes:
        outputs: What it returned.
        slopes: For each set of outputs, the derivatives of their sum by the inputs that it is differentiated
            by; empty where these are not to be had for less than ``vjp`` takes.
        vjp: Gradients by the outputs, in the outputs' order, to those by these inputs.
    """

    outputs: Sequence[torch.Tensor]
    slopes: Sequence[Sequence[torch.Tensor]]
    vjp: Callable[[Sequence[torch.Tensor | None]], list[torch.Tensor]]


class Segmented:
    """A program as segments.

    Args:
        program: The program: placeholders first, then calls.
        root: Where its modules are found.
        active: The placeholders to differentiate by.
        sets: Positions of outputs whose sums' derivatives are wanted.
        example: Values of the placeholders; on these the program is run once, to see what its nodes do.

    Raises:
        NotSegmentedError: if the program cannot be cut.
    """

    def __init__(
        self,
        program: fx.Graph,
        root: nn.Module,
        active: Sequence[fx.Node],
        sets: Sequence[Sequence[int]],
        example: Sequence[Any],
    ) -> None:
        nodes = list(program.nodes)
        slot = {node: number for number, node in enumerate(nodes)}
        returned = cast("Sequence[fx.Node]", nodes[-1].args[0])
        self._count = len(nodes)
        self._active = [slot[node] for node in active]
        self._returned = [slot[node] for node in returned]
        self._served: dict[Hashable, list[_Served]] = {}
        wanted = [[returned[position] for position in positions] for positions in sets]
        self._segments = cut(program, root, active, wanted, example)
        last = self._segments[-1]
        in_last = all(slot[node] in last.outputs for nodes in wanted for node in nodes)
        # Each set would have to be pulled through what lies before the last kernel.
        few = len(self._segments) == 1 or len(sets) == 1
        possible = last.kernels is not None and last.active and in_last and few
        self._sets = len(sets) if possible else 0

    def __call__(self, *inputs: Any) -> Evaluation:
        """Runs the program; nothing is recorded for autograd outside."""
        values: list[Any] = [*inputs, *[None] * (self._count - len(inputs))]
        served = self._served.setdefault(signature(inputs), [_Served() for _ in self._segments])
        runs: list[_Run] = []
        last: Sequence[Sequence[torch.Tensor]] = ()
        for segment, calls in zip(self._segments, served, strict=True):
            given = [values[slot] for slot in segment.inputs]
            if self._sets and segment is self._segments[-1]:
                run, last = _Run.with_slopes(segment, calls, given, self._sets)
            else:
                run = _Run.of(segment, calls, given)
            runs.append(run)
            for slot, value in zip(segment.outputs, run.outputs, strict=True):
                recorded = isinstance(value, torch.Tensor) and value.requires_grad
                values[slot] = value.detach() if recorded else value

        def pulled(known: dict[int, torch.Tensor], through: Sequence[_Run]) -> list[torch.Tensor]:
            for run in reversed(through):
                run.pull(known)
            leaves = [(slot, values[slot]) for slot in self._active]
            return [known[slot] if slot in known else torch.zeros_like(leaf) for slot, leaf in leaves]

        def vjp(gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
            pairs = zip(self._returned, gradients, strict=True)
            return pulled({slot: gradient for slot, gradient in pairs if gradient is not None}, runs)

        reached = [self._segments[-1].inputs[position] for position in self._segments[-1].active]
        slopes = [pulled(dict(zip(reached, own, strict=True)), runs[:-1]) for own in last]
        return Evaluation([values[slot] for slot in self._returned], slopes, vjp)


@dataclass
class _Served:
    """The kernels that serve a segment on inputs of one signature, as soon as they are known.

    These decide the types, extents and strides of everything in between; so does autocast, which is on or
    off for all runs of one program.
    """

    forward: Call | None = None
    vjp: Call | None = None
    slopes: Call | None = None


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

    @staticmethod
    def with_slopes(
        segment: Segment, served: _Served, inputs: list[Any], sets: int
    ) -> tuple[_Run, list[Sequence[torch.Tensor]]]:
        """Runs a segment that is a kernel; returns the slopes of its sets of outputs too."""
        assert segment.kernels is not None
        served.slopes = served.slopes or segment.kernels.slopes.serving(inputs)
        found, each = served.slopes(*inputs), len(segment.active)
        count = len(found) - sets * each
        slopes = [found[at : at + each] for at in range(count, len(found), each)]
        return _Run(segment, served, inputs, found[:count]), slopes

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
            return self.served.vjp(*values)
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
