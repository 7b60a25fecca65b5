"""A program cut into segments: elementwise operators that follow each other are one kernel, others run alone.

Even levels of the program are fused, odd ones are not; a node's level is the least that its inputs allow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from morphir.ir.state import named_state
from morphir.runtime.learning.folded_norm import FoldedNorm
from morphir.runtime.learning.kernels import Kernels, renamed
from morphir.runtime.learning.linear_ops import Convolution, module_apply
from morphir.runtime.learning.window_max import window_max
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
        spent: Positions of active inputs of the whole program that no other segment reads, and over which a
            kernel writes their gradients.
    """

    program: fx.GraphModule
    kernels: Kernels | None
    convolutions: tuple[_Convolution, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    active: tuple[int, ...]
    moving: tuple[int, ...]
    spent: tuple[int, ...]


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


def cut(
    program: fx.Graph,
    root: nn.Module,
    active: Sequence[fx.Node],
    example: Sequence[Any],
) -> list[Segment]:
    """Cuts a program; slots are positions of its nodes.

    Args:
        program: The program: placeholders first, then calls.
        root: Where its modules are found.
        active: The placeholders to differentiate by.
        example: Values of the placeholders; on these the program is run once, to see what its nodes do.

    Raises:
        NotSegmentedError: if the program cannot be cut.
    """
    nodes = list(program.nodes)
    slot = {node: number for number, node in enumerate(nodes)}
    observed = _Observer(program, root)
    observed.run(*example)
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
    return [
        _segment(
            [node for node in levels if levels[node] == level],
            root,
            moving,
            slot,
            fused=level % 2 == 0,
        )
        for level in sorted(set(levels.values()))
    ]


def _segment(
    nodes: Sequence[fx.Node],
    root: nn.Module,
    moving: set[fx.Node],
    slot: Mapping[fx.Node, int],
    *,
    fused: bool,
) -> Segment:
    own = set(nodes)
    inputs = list(dict.fromkeys(x for node in nodes for x in node.all_input_nodes if x not in own))
    outputs = [node for node in nodes if any(user not in own for user in node.users)]
    active = tuple(position for position, node in enumerate(inputs) if node in moving)
    # A window's gradients hang on values at several places, which must be read before one of them is written.
    pools = any(node.target is window_max for node in nodes)
    spent = () if pools else tuple(at for at in active if _is_spent(inputs[at], own))
    carried = tuple(position for position, node in enumerate(outputs) if node in moving)
    program = renamed(nodes, inputs, outputs, root)
    return Segment(
        program,
        Kernels.of(program, active, carried, spent) if fused else None,
        () if fused else _convolutions(nodes, inputs, outputs, root),
        tuple(slot[node] for node in inputs),
        tuple(slot[node] for node in outputs),
        active,
        carried,
        spent,
    )


def _is_spent(source: fx.Node, readers: set[fx.Node]) -> bool:
    return source.op == "placeholder" and readers.issuperset(source.users)


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
    return lambda x, gradient: convolution.input_gradient(x, cast("torch.Tensor", module.weight), gradient)
