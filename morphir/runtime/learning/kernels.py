"""Elementwise programs compiled into one kernel, and one for their vector-Jacobian product.

PyTorch's own backward of a compiled function keeps masks from the forward kernel, which on a CPU made it
slower than no compiler at all. The kernel of the product computes the forward values again, from inputs that
are in memory anyway.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch._dynamo.source import LocalSource
from torch._guards import detect_fake_mode
from torch._inductor import standalone_compile
from torch.func import vjp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from morphir.errors import MorphirError
from morphir.ir.state import submodules

Call = Callable[..., Sequence[Any]]
_ALIGNED = 64
"""Entries: tensors that start at a multiple of it are aligned for every dtype."""
_OFF, _ROUNDINGS = 64, 1000
"""A trial's first input is off by so many times its dtype's rounding, the second by twice as many; and so
many is the largest relative error of a result, by norm, apart from what those inputs change."""
_OFF_OF_HALF, _ROUNDINGS_OF_HALF = 1, 16
"""The same for half precision, whose rounding is large."""
_COMPILING = threading.RLock()
"""PyTorch's compiler keeps state of its own, and cannot be at work in two threads."""


class Kernel:
    """A program of elementwise operators, compiled for all extents as far as it reads the same for them.

    Args:
        program: ``program(*inputs)`` returns a tuple of tensors; inputs are tensors and numbers.
    """

    def __init__(self, program: Call) -> None:
        self.program = program
        self._variants: list[_Variant] = []

    def serving(self, values: Sequence[Any], reference: Call | None = None) -> Call:
        """Returns the compiled program for all inputs of these types, extents and strides; compiles at need.

        It is tried on the inputs first, against the program as it is.

        Args:
            values: The inputs.
            reference: The program that it stands for; the kernel's own where None.

        Raises:
            MorphirError: if it cannot be compiled, or if what comes out computes something else.
        """
        with _COMPILING:
            variant = next((variant for variant in self._variants if variant.fits(values)), None)
            if variant is None:
                variant = _Variant.of(self.program, values)
                self._variants.append(variant)
        _try(variant.call, reference or self.program, values)
        return variant.call


def _try(call: Call, reference: Call, values: Sequence[Any]) -> None:
    """Rounding may change a result as much as inputs do that are a little off: sums of u g cancel."""
    off = [_a_little_off(value, number) for number, value in enumerate(values, 1)]
    results = zip(call(*values), reference(*values), reference(*off), strict=True)
    if not all(_agree(*result) for result in results):
        raise MorphirError(
            "a kernel of the learner computes something else compiled than uncompiled",
            hint="leave compile off; PyTorch's compiler made a mistake that is worth reporting",
        )


def _agree(found: torch.Tensor, expected: torch.Tensor, nearby: torch.Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    finite, half = expected.isfinite(), expected.dtype in _HALF
    if not torch.equal(found.isfinite(), finite):
        return False
    most = (_ROUNDINGS_OF_HALF if half else _ROUNDINGS) * torch.finfo(expected.dtype).eps
    found, expected, nearby = (torch.where(finite, x, 0).double() for x in (found, expected, nearby))
    changed = (nearby - expected).nan_to_num(0, 0, 0).square().sum().sqrt()
    error = (found - expected).square().sum().sqrt()
    return bool(error <= changed + most * expected.square().sum().sqrt())


def _a_little_off(value: Any, number: int) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    off = _OFF_OF_HALF if value.dtype in _HALF else _OFF
    return value * (1 + number * off * torch.finfo(value.dtype).eps)


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
        kept = _fixed(values)

        def on_tensors(*tensors: torch.Tensor) -> Sequence[Any]:
            given = iter(tensors)
            return program(*(next(given) if isinstance(v, torch.Tensor) else v for v in values))

        try:
            traced = make_fx(on_tensors, tracing_mode="symbolic")(*_tensors(values))
            compiled = standalone_compile(traced, [*_tensors(values)], dynamic_shapes="from_graph")
        except Exception as error:  # no compiler, or whatever it cannot do
            raise MorphirError(
                f"the learner's kernels cannot be compiled: {type(error).__name__}: {error}",
                hint="torch.compile needs a C++ compiler, on CUDA Triton; install one, or leave compile off",
            ) from error
        holds = _assumptions(traced)
        plain = len(_tensors(values)) == len(values)
        return _Variant(
            compiled if plain else lambda *given: compiled(*_tensors(given)),
            lambda others: _fixed(others) == kept and holds(_tensors(others)),
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


def _fixed(values: Sequence[Any]) -> Hashable:
    """What a compiled form holds for: numbers as they are, tensors of one type and any extents; autocast."""
    kinds = tuple(
        (value.dtype, value.device, value.dim())
        if isinstance(value, torch.Tensor)
        else (type(value).__name__, value)
        for value in values
    )
    return kinds, autocast_state(values)


def autocast_state(values: Sequence[Any]) -> Hashable:
    """Returns what autocast does on the device of some tensors; None where it is off."""
    kind = next((value.device.type for value in values if isinstance(value, torch.Tensor)), "cpu")
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def signature(values: Sequence[Any]) -> Hashable:
    """Returns the types, extents and strides of a program's inputs, and the values of its numbers.

    Where a tensor starts in its storage does not matter to a kernel, but for whether it is aligned.
    """
    return tuple(
        (
            (value.shape, value.stride(), value.dtype, value.device, value.storage_offset() % _ALIGNED == 0)
            if isinstance(value, torch.Tensor)
            else (type(value).__name__, value)
        )
        for value in values
    )


@dataclass(frozen=True)
class Kernels:
    """A program's kernel, and that of its vector-Jacobian product.

    Attributes:
        forward: ``forward(*inputs)`` returns the outputs.
        vjp: ``vjp(*inputs, *gradients of the moving outputs)`` returns those of the active inputs.
        own: The two as they are uncompiled, of the program's own modules.
    """

    forward: Kernel
    vjp: Kernel

    own: tuple[Call, Call]

    @staticmethod
    def of(program: fx.GraphModule, active: Sequence[int], moving: Sequence[int]) -> Kernels:
        """Returns a program's kernels; it shares them with programs that compute the same.

        Args:
            program: ``program(*inputs)`` returns a tuple of tensors; its modules hold no tensors.
            active: Positions of the inputs to differentiate by.
            moving: Positions of the outputs that depend on them.
        """
        own = program, _product(program, active, moving)
        modules = [_described(module) for name, module in submodules(program) if name]
        if None in modules:
            return Kernels(Kernel(own[0]), Kernel(own[1]), own)
        targets = tuple(node.target for node in program.graph.nodes if node.op == "call_function")
        key = (program.code, targets, tuple(modules), tuple(active), tuple(moving))
        with _COMPILING:
            if key not in _SHARED:
                # A copy: what its graph does with its modules later is not the others' business.
                kept = copy.deepcopy(program).eval()
                _SHARED[key] = Kernel(kept), Kernel(_product(kept, active, moving))
            return Kernels(*_SHARED[key], own)

    def serving_forward(self, values: Sequence[Any]) -> Call:
        """Returns the program compiled for such inputs."""
        return self.forward.serving(values, self.own[0])

    def serving_vjp(self, values: Sequence[Any]) -> Call:
        """Returns the vector-Jacobian product compiled for such inputs."""
        return self.vjp.serving(values, self.own[1])


_SHARED: dict[Hashable, tuple[Kernel, Kernel]] = {}


def _described(module: nn.Module) -> Hashable | None:
    """Returns all that decides what a module computes; None where that cannot be told."""
    attributes = vars(module)
    options = {name: value for name, value in attributes.items() if not name.startswith("_")}
    hooked = any(value for name, value in attributes.items() if name.endswith("_hooks"))
    plain = all(isinstance(value, bool | int | float | str | None) for value in options.values())
    if hooked or not plain or not type(module).__module__.startswith("torch.nn."):
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


_HALF = frozenset({torch.bfloat16, torch.float16})
