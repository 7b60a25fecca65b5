"""A segment's kernels: its program's, its vector-Jacobian product's, and both at once; equal segments share.

PyTorch's own backward of a compiled function keeps masks from the forward kernel, which on a CPU made it
slower than no compiler at all. The kernel of the product computes the forward values again, from inputs that
are in memory anyway.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch.func import vjp
from torch.fx.node import map_arg

from morphir.ir.state import is_plain, submodules
from morphir.runtime.learning.compilation import COMPILING, Call, Compiled


@dataclass(frozen=True)
class Kernel:
    """A program's compiled form, which other programs may share.

    Attributes:
        program: ``program(*inputs)`` returns a tuple of tensors.
        compiled: The compiled form.
    """

    program: Call
    compiled: Compiled

    def serving(self, values: Sequence[Any]) -> Call:
        """Returns what serves all inputs of these types, extents and strides, once it was tried on them.

        Raises:
            MorphirError: as :meth:`Compiled.serving`.
        """
        return self.compiled.serving(values, self.program)


@dataclass(frozen=True)
class Kernels:
    """A program's kernels; what is not asked for is never compiled.

    Attributes:
        forward: ``forward(*inputs)`` returns the outputs.
        vjp: ``vjp(*inputs, *gradients of the moving outputs)`` returns those of the active inputs, or writes
            them in the inputs' places.
        last: ``last(*inputs)`` returns all outputs but the last, a scalar, and that one's derivatives by the
            active inputs in the same way.
    """

    forward: Kernel
    vjp: Kernel
    last: Kernel

    @staticmethod
    def of(
        program: fx.GraphModule, active: Sequence[int], moving: Sequence[int], spent: Sequence[int]
    ) -> Kernels:
        """Returns a program's kernels; it shares them with programs that compute the same.

        Args:
            program: ``program(*inputs)`` returns a tuple of tensors; its modules hold no tensors.
            active: Positions of the inputs to differentiate by.
            moving: Positions of the outputs that depend on them.
            spent: Active inputs that nobody reads afterwards: their gradients are written over them.
        """

        def forms(program: fx.GraphModule) -> tuple[Call, Call, Call]:
            return program, _product(program, active, moving, spent), _last(program, active, spent)

        def compiled(forms: tuple[Call, Call, Call]) -> list[Compiled]:
            forward, *back = forms
            return [Compiled(forward), *(Compiled(form, spent) for form in back)]

        own = forms(program)
        modules = [_described(module) for name, module in submodules(program) if name]
        if None in modules:
            return Kernels(*map(Kernel, own, compiled(own)))
        targets = tuple(node.target for node in program.graph.nodes if node.op == "call_function")
        key = (program.code, targets, tuple(modules), tuple(active), tuple(moving), tuple(spent))
        with COMPILING:
            if key not in _SHARED:
                # A copy: what its graph does with its modules later is not the others' business.
                _SHARED[key] = compiled(forms(copy.deepcopy(program).eval()))
            shared = _SHARED[key]
        return Kernels(*map(Kernel, own, shared))


_SHARED: dict[Hashable, list[Compiled]] = {}


def _described(module: nn.Module) -> Hashable | None:
    """Returns all that decides what a module computes; None where that cannot be told."""
    options = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    plain = all(isinstance(value, bool | int | float | str | None) for value in options.values())
    if not plain or not is_plain(module) or not type(module).__module__.startswith("torch.nn."):
        return None
    options.pop("training", None)
    return type(module), tuple(sorted((name, type(value).__name__, value) for name, value in options.items()))


def renamed(
    nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node], root: nn.Module
) -> fx.GraphModule:
    """Copies nodes into a program of their own, whose text does not tell what they were called.

    Args:
        nodes: The nodes, in program order.
        inputs: What they read from outside.
        outputs: The nodes whose values the program returns.
        root: Where the nodes' modules are found.
    """
    program, modules = fx.Graph(), dict[str, nn.Module]()
    copied = {node: program.placeholder(f"given_{number}") for number, node in enumerate(inputs)}
    for number, node in enumerate(nodes):
        args, kwargs = map_arg(cast("Any", (node.args, node.kwargs)), copied.__getitem__)
        target = node.target
        if node.op == "call_module":
            target = f"module_{number}"
            modules[target] = root.get_submodule(cast(str, node.target))
        copied[node] = program.create_node(node.op, target, args, kwargs, name=f"value_{number}")
    program.output(tuple(copied[node] for node in outputs))
    module = fx.GraphModule(modules, program)
    module.training = False
    return module


def _product(program: Call, active: Sequence[int], moving: Sequence[int], spent: Sequence[int]) -> Call:
    def product(*values: Any) -> Sequence[Any]:
        count = len(values) - len(moving)
        found = _pulled(program, values[:count], active, moving, values[count:])
        return _written(values, active, spent, found)

    return product


def _last(program: Call, active: Sequence[int], spent: Sequence[int]) -> Call:
    def last(*inputs: Any) -> Sequence[Any]:
        *outputs, scalar = program(*inputs)
        found = _pulled(program, inputs, active, [len(outputs)], [torch.ones_like(scalar)])
        return (*outputs, *_written(inputs, active, spent, found))

    return last


def _written(
    inputs: Sequence[Any], active: Sequence[int], spent: Sequence[int], gradients: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Writes gradients over spent inputs, and returns the others."""
    found = dict(zip(active, gradients, strict=True))
    for position in spent:
        inputs[position].copy_(found.pop(position))
    return list(found.values())


def _pulled(
    program: Call,
    inputs: Sequence[Any],
    active: Sequence[int],
    outputs: Sequence[int],
    gradients: Sequence[torch.Tensor],
) -> Sequence[torch.Tensor]:
    """Returns the gradients by the active inputs, of those by some outputs."""

    def chosen(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = list(inputs)
        for position, leaf in zip(active, leaves, strict=True):
            given[position] = leaf
        found = program(*given)
        return tuple(found[position] for position in outputs)

    pull = cast("tuple[Any, Call]", vjp(chosen, *(inputs[position] for position in active)))[1]
    return pull(tuple(gradients))
