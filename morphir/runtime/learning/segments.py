"""A program as segments: elementwise operators, each run of them one kernel, and all others as they are.

Its vector-Jacobian product goes through the segments backwards: kernels compute it themselves, from their
inputs alone, what is between them has autograd's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from morphir.ir.state import named_state
from morphir.runtime.learning.compilation import Call, signature
from morphir.runtime.learning.folded_norm import FoldedNorm
from morphir.runtime.learning.kernels import Kernels, renamed
from morphir.runtime.learning.linear_ops import Convolution, module_apply
from morphir.runtime.learning.working_copy import only_input

_ALSO_FUSED = frozenset(
    {
        torch.ops.aten.as_strided_.default,  # the strides of what global pooling has just made
        torch.ops.aten.cat.default,
        torch.ops.aten.clone.default,
        torch.ops.aten._to_copy.default,
        torch.ops.aten.mean.dim,
        torch.ops.aten.sum.dim_IntList,
    }
)
"""No elementwise operators, but a compiler reads through them."""


class NotSegmentedError(Exception):
    """Several tensors at once would have to go from one segment to another."""


@dataclass(frozen=True)
class _Convolution:
    """A node that is a convolution, folded batch norm included.

    Attributes:
        module: What it calls.
        gradient: From its input and the gradient by its output to the one by its input.
        source: Position of its input among the segment's.
        output: Position of its output among the segment's.
    """

    module: nn.Module
    gradient: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    source: int
    output: int


@dataclass(frozen=True)
class Segment:
    """Consecutive nodes.

    Attributes:
        program: ``program(*inputs)`` returns the outputs.
        kernels: The same, compiled; None for a segment that is run as it is.
        convolutions: Its nodes, where it is run as it is and all of them are convolutions; else nothing.
        inputs: Slots of what it reads.
        outputs: Slots of what it returns.
        active: Positions of the inputs that are differentiated by.
        moving: Positions of the outputs that depend on these.
    """

    program: fx.GraphModule
    kernels: Kernels | None
    convolutions: tuple[_Convolution, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    active: tuple[int, ...]
    moving: tuple[int, ...]


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
        observer = _Observer(program, root)
        observer.run(*example)
        self._served: dict[Hashable, list[_Served]] = {}
        wanted = [[returned[position] for position in positions] for positions in sets]
        self._segments = _cut(nodes, root, active, wanted, observer, slot)
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
                values[slot] = value.detach() if isinstance(value, torch.Tensor) else value

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


class _Observer(fx.Interpreter):
    """Runs a program, and sees what its nodes do.

    Attributes:
        fused: The nodes that a compiler fuses.
        floating: Those with floating-point values.
        several: Those that yield several tensors at once.
    """

    def __init__(self, program: fx.Graph, root: nn.Module) -> None:
        super().__init__(root, graph=program)
        self.fused: set[fx.Node] = set()
        self.floating: set[fx.Node] = set()
        self.several: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        with _Operators() as seen:
            value = super().run_node(n)
        leaves = pytree.tree_leaves(value)
        if any(isinstance(leaf, torch.Tensor) and leaf.is_floating_point() for leaf in leaves):
            self.floating.add(n)
        if not isinstance(value, torch.Tensor):
            if n.op.startswith("call_") and any(isinstance(leaf, torch.Tensor) for leaf in leaves):
                self.several.add(n)
        elif all(map(_is_fused, seen.operators)) and self._may_be_fused(n):
            self.fused.add(n)
        return value

    def _may_be_fused(self, node: fx.Node) -> bool:
        """Kernels take tensors as inputs, and no tuples of them, and keep no tensors of their own."""
        if node.op == "call_module":
            module = cast("nn.Module", self.fetch_attr(cast(str, node.target)))
            return not named_state(module)
        return self.several.isdisjoint(node.all_input_nodes)


class _Operators(TorchDispatchMode):
    """Collects the operators that run."""

    def __init__(self) -> None:
        cast("Any", super()).__init__()
        self.operators: list[OpOverload] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.operators.append(func)
        return func(*args, **(kwargs or {}))


def _is_fused(called: OpOverload) -> bool:
    if called in _ALSO_FUSED:
        return True
    return not cast("Any", called)._schema.is_mutable and (
        called.is_view or torch.Tag.pointwise in called.tags
    )


def _cut(
    nodes: Sequence[fx.Node],
    root: nn.Module,
    active: Sequence[fx.Node],
    sets: Sequence[Sequence[fx.Node]],
    observed: _Observer,
    slot: Mapping[fx.Node, int],
) -> list[Segment]:
    """Even levels are fused, odd ones not; a node's level is the least that its inputs allow."""
    levels: dict[fx.Node, int] = {}
    moving = set(active)
    for node in nodes:
        if not node.op.startswith("call_"):
            continue
        fused = node in observed.fused
        before = [levels[source] for source in node.all_input_nodes if source in levels]
        levels[node] = max(
            (level + (fused == bool(level % 2)) for level in before), default=0 if fused else 1
        )
        if node in observed.floating and not moving.isdisjoint(node.all_input_nodes):
            moving.add(node)
    if any(levels[user] != levels[node] for node in observed.several for user in node.users):
        raise NotSegmentedError
    last = max((level for level in levels.values() if level % 2 == 0), default=0)
    waiting = {nodes[-1]}
    for node in reversed(levels):
        # What only the output needs can wait for the last kernel, which reads the same values.
        if node in observed.fused and waiting.issuperset(node.users):
            waiting.add(node)
            levels[node] = last
    used = sorted(set(levels.values()))
    return [
        _segment(
            [node for node in levels if levels[node] == level],
            root,
            moving,
            sets if level == used[-1] else (),
            slot,
            fused=level % 2 == 0,
        )
        for level in used
    ]


def _segment(
    nodes: Sequence[fx.Node],
    root: nn.Module,
    moving: set[fx.Node],
    sets: Sequence[Sequence[fx.Node]],
    slot: Mapping[fx.Node, int],
    *,
    fused: bool,
) -> Segment:
    own = set(nodes)
    inputs = list(dict.fromkeys(x for node in nodes for x in node.all_input_nodes if x not in own))
    outputs = [node for node in nodes if any(user not in own for user in node.users)]
    active = tuple(position for position, node in enumerate(inputs) if node in moving)
    carried = tuple(position for position, node in enumerate(outputs) if node in moving)
    program = renamed(nodes, inputs, outputs, root)
    wanted = [[outputs.index(node) for node in nodes if node in own] for nodes in sets]
    return Segment(
        program,
        Kernels.of(program, active, carried, wanted) if fused else None,
        () if fused else _convolutions(nodes, inputs, outputs, root),
        tuple(slot[node] for node in inputs),
        tuple(slot[node] for node in outputs),
        active,
        carried,
    )


def _convolutions(
    nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node], root: nn.Module
) -> tuple[_Convolution, ...]:
    """Returns nodes that are all convolutions of what comes from outside; nothing where one is not."""
    found: list[_Convolution] = []
    for node in outputs:
        source = only_input(node)
        module = root.get_submodule(cast(str, node.target)) if node.op == "call_module" else None
        gradient = None if module is None else _input_gradient(module)
        if module is None or gradient is None or source not in inputs:
            return ()
        found.append(_Convolution(module, gradient, inputs.index(source), len(found)))
    return tuple(found) if len(found) == len(nodes) else ()


def _input_gradient(module: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    if isinstance(module, FoldedNorm):
        return module.input_gradient if isinstance(module.apply_kernel, Convolution) else None
    convolution = module_apply(module)
    if not isinstance(convolution, Convolution):
        return None

    def gradient(x: torch.Tensor, by_output: torch.Tensor) -> torch.Tensor:
        kernel, dtype = cast("torch.Tensor", module.weight), by_output.dtype
        return convolution.input_gradient(x.to(dtype), kernel.detach().to(dtype), by_output)

    return gradient
