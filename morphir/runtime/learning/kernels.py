"""Elementwise programs compiled into one kernel, and one for their vector-Jacobian product.

PyTorch's own backward of a compiled function keeps masks from the forward kernel, which on a CPU made it
slower than no compiler at all. The kernel of the product computes the forward values again, from inputs that
are in memory anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch._dynamo.source import LocalSource
from torch._guards import detect_fake_mode
from torch._inductor import standalone_compile
from torch._inductor.exc import InductorError, InvalidCxxCompiler
from torch.func import vjp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from morphir.errors import MorphirError
from morphir.ir.state import named_state, submodules

Call = Callable[..., Sequence[Any]]
_TOLERANCE = 1000
"""The largest relative error of a kernel's result, by norm, in units of its dtype's rounding."""


class Kernel:
    """A program of elementwise operators, compiled for all extents as far as it reads the same for them.

    Args:
        program: ``program(*inputs)`` returns a tuple of tensors; inputs are tensors and integers.
    """

    def __init__(self, program: Call) -> None:
        self.program = program
        self._variants: list[_Variant] = []

    def serving(self, values: Sequence[Any]) -> Call:
        """Returns the compiled program for all inputs of these types, extents and strides; compiles at need.

        It is tried on the inputs first, against the program as it is.

        Raises:
            MorphirError: if there is no compiler, or if what it makes computes something else.
        """
        variant = next((variant for variant in self._variants if variant.fits(values)), None)
        if variant is None:
            variant = _Variant.of(self.program, values)
            self._variants.append(variant)
        self._try(variant.call, values)
        return variant.call

    def _try(self, call: Call, values: Sequence[Any]) -> None:
        """Rounding may change a result as much as inputs do that are a little off: sums of u g cancel."""
        off = [_a_little_off(value, number) for number, value in enumerate(values, 1)]
        results = zip(call(*values), self.program(*values), self.program(*off), strict=True)
        for found, expected, nearby in results:
            most = (nearby - expected).norm() + _TOLERANCE * torch.finfo(expected.dtype).eps * expected.norm()
            if found.shape != expected.shape or (found - expected).norm() > most:
                raise MorphirError(
                    "a kernel of the learner computes something else compiled than uncompiled",
                    hint="leave compile off; PyTorch's compiler made a mistake that is worth reporting",
                )


def _a_little_off(value: Any, number: int) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value * (1 + 64 * number * torch.finfo(value.dtype).eps)


@dataclass(frozen=True)
class _Variant:
    """One compiled form of a program.

    Attributes:
        call: The kernel.
        fits: Whether what was assumed of the example's extents and strides holds for other inputs.
    """

    call: Call
    fits: Callable[[Sequence[Any]], bool]

    @staticmethod
    def of(program: Call, values: Sequence[Any]) -> _Variant:
        kept = list(map(_fixed, values))

        def on_tensors(*tensors: torch.Tensor) -> Sequence[Any]:
            given = iter(tensors)
            return program(*(next(given) if isinstance(v, torch.Tensor) else v for v in values))

        traced = make_fx(on_tensors, tracing_mode="symbolic")(*_tensors(values))
        try:
            compiled = standalone_compile(traced, [*_tensors(values)], dynamic_shapes="from_graph")
        except (InductorError, InvalidCxxCompiler) as error:
            raise MorphirError(
                f"the learner's kernels cannot be compiled: {error}",
                hint="torch.compile needs a C++ compiler, on CUDA Triton; install one, or leave compile off",
            ) from error
        holds = _assumptions(traced)
        plain = len(_tensors(values)) == len(values)
        return _Variant(
            compiled if plain else lambda *given: compiled(*_tensors(given)),
            lambda others: list(map(_fixed, others)) == kept and holds(_tensors(others)),
        )


def _assumptions(traced: fx.GraphModule) -> Callable[[Sequence[torch.Tensor]], bool]:
    """Returns whether inputs have what tracing and compiling assumed of extents and strides."""
    placeholders = [node.meta["val"] for node in traced.graph.nodes if node.op == "placeholder"]
    mode = detect_fake_mode(placeholders)
    assert mode is not None and mode.shape_env is not None
    shapes = mode.shape_env
    names = [LocalSource(f"t{number}") for number in range(len(placeholders))]
    guards = shapes.produce_guards(placeholders, names, ignore_static=False)
    # In brackets: some are alternatives.
    condition = " and ".join(f"({guard})" for guard in guards)
    return lambda tensors: shapes.evaluate_guards_expression(condition, tensors)


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def _fixed(value: Any) -> Hashable:
    """What a compiled form holds for: numbers as they are, tensors of one type and any extents."""
    return (value.dtype, value.device, value.dim()) if isinstance(value, torch.Tensor) else value


def signature(values: Sequence[Any]) -> Hashable:
    """Returns all that decides which kernels serve a program's inputs."""
    return tuple(
        (value.shape, value.stride(), value.storage_offset(), value.dtype, value.device)
        if isinstance(value, torch.Tensor)
        else value
        for value in values
    )


@dataclass(frozen=True)
class Kernels:
    """A program's kernel, and that of its vector-Jacobian product.

    Attributes:
        forward: ``forward(*inputs)`` returns the outputs.
        vjp: ``vjp(*inputs, *gradients of the moving outputs)`` returns those of the active inputs.
    """

    forward: Kernel
    vjp: Kernel

    @staticmethod
    def of(program: fx.GraphModule, active: Sequence[int], moving: Sequence[int]) -> Kernels:
        """Returns a program's kernels; programs that read the same, and hold no tensors, share them.

        Args:
            program: ``program(*inputs)`` returns a tuple of tensors.
            active: Positions of the inputs to differentiate by.
            moving: Positions of the outputs that depend on them.
        """
        modules = [module for name, module in submodules(program) if name]
        if named_state(program) or not all(type(m).__module__.startswith("torch.nn.") for m in modules):
            return Kernels(Kernel(program), Kernel(_product(program, active, moving)))
        targets = tuple(node.target for node in program.graph.nodes if node.op == "call_function")
        key = (program.code, targets, tuple(map(repr, modules)), tuple(active), tuple(moving))
        if key not in _SHARED:
            _SHARED[key] = Kernels(Kernel(program), Kernel(_product(program, active, moving)))
        return _SHARED[key]


_SHARED: dict[Hashable, Kernels] = {}


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


def _product(program: fx.GraphModule, active: Sequence[int], moving: Sequence[int]) -> Call:
    def product(*values: Any) -> Sequence[Any]:
        count = len(values) - len(moving)
        inputs, gradients = list(values[:count]), values[count:]

        def outputs(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
            for position, leaf in zip(active, leaves, strict=True):
                inputs[position] = leaf
            found = program(*inputs)
            return tuple(found[position] for position in moving)

        pull = cast("tuple[Any, Call]", vjp(outputs, *(inputs[position] for position in active)))[1]
        return pull(gradients)

    return product
