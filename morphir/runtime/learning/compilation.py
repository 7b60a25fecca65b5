"""Programs of elementwise operators, compiled: for any extents, called without Dynamo, tried before use.

Dynamo would evaluate its guards at every call, which takes longer than a small layer's work. Here they are
evaluated for inputs of a new signature; whoever calls remembers by :func:`signature` what served them. A
kernel is called as PyTorch's compiler wrote it, without what stands around it for programs with gradients.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch._dynamo.source import LocalSource
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from morphir.errors import MorphirError
from morphir.runtime.learning.precision import HALF, autocast_dtype

Call = Callable[..., Sequence[Any]]
_ALIGNED = 64
"""Entries: tensors that start at a multiple of it are aligned for every dtype."""
_OFF, _ROUNDINGS = 64, 1000
"""A trial's first input is off by so many times its dtype's rounding, the second by twice as many; and so
many is the largest relative error of a result, by norm, apart from what those inputs change."""
_OFF_OF_HALF, _ROUNDINGS_OF_HALF = 1, 16
"""The same for half precision, whose rounding is large."""
COMPILING = threading.RLock()
"""PyTorch's compiler keeps state of its own, and cannot be at work in two threads."""


class Compiled:
    """A program of elementwise operators, compiled for all extents as far as it reads the same for them.

    Args:
        program: ``program(*inputs)`` returns a tuple of tensors; inputs are tensors and numbers.
        written: Positions of the inputs that it writes to.
    """

    def __init__(self, program: Call, written: Sequence[int] = ()) -> None:
        self.program = program
        self._written = written
        self._variants: list[_Variant] = []

    def serving(self, values: Sequence[Any], reference: Call) -> Call:
        """Returns the compiled program for all inputs of these types, extents and strides; compiles at need.

        Args:
            values: Such inputs, on which it is tried first.
            reference: What it is to compute, uncompiled.

        Raises:
            MorphirError: if it cannot be compiled, or if what comes out computes something else.
        """
        with COMPILING:
            variant = next((variant for variant in self._variants if variant.fits(values)), None)
            if variant is None:
                variant = _Variant.of(self.program, values)
                self._variants.append(variant)
        self._try(variant.call, reference, values)
        return variant.call

    def _try(self, call: Call, reference: Call, values: Sequence[Any]) -> None:
        """Rounding may change a result as much as inputs do that are a little off: sums of u g cancel."""
        off = [_a_little_off(value, number) for number, value in enumerate(values, 1)]
        results = zip(
            self._run(call, values), self._run(reference, values), self._run(reference, off), strict=True
        )
        if not all(_agree(*result) for result in results):
            raise MorphirError(
                "a kernel of the learner computes something else compiled than uncompiled",
                hint="leave compile off; PyTorch's compiler made a mistake that is worth reporting",
            )

    def _run(self, call: Call, values: Sequence[Any]) -> list[torch.Tensor]:
        """Returns what a call yields, and what it leaves of copies of the inputs that it writes to."""
        given = list(values)
        for position in self._written:
            given[position] = _copied(values[position])
        return [*call(*given), *(given[position] for position in self._written)]


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """Copies a tensor, gaps in its memory included."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor)


def _agree(found: torch.Tensor, expected: torch.Tensor, nearby: torch.Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    finite, half = expected.isfinite(), expected.dtype in HALF
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
    off = _OFF_OF_HALF if value.dtype in HALF else _OFF
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
        # They take seconds, which whoever compiles nothing need not wait.
        from torch._inductor.compile_fx import compile_fx_inner  # noqa: PLC0415
        from torch._inductor.decomposition import select_decomp_table  # noqa: PLC0415

        kept = _fixed(values)

        def on_tensors(*tensors: torch.Tensor) -> Sequence[Any]:
            given = iter(tensors)
            return program(*(next(given) if isinstance(v, torch.Tensor) else v for v in values))

        try:
            traced = make_fx(on_tensors, tracing_mode="symbolic")(*_tensors(values))
            examples = _examples(traced)
            with _fake_mode(examples):
                pure = functionalize(traced)
                lowered = make_fx(pure, decomposition_table=select_decomp_table())(*examples)
            made = cast("Any", compile_fx_inner(lowered, examples, is_inference=True))
            # A program that does nothing, as dropout in evaluation mode, has no kernel.
            compiled: Call = getattr(made, "current_callable", made)
        except Exception as error:  # no compiler, or whatever it cannot do
            raise MorphirError(
                f"the learner's kernels cannot be compiled: {type(error).__name__}: {error}",
                hint="torch.compile needs a C++ compiler, on CUDA Triton; install one, or leave compile off",
            ) from error
        holds = _assumptions(traced)
        plain = len(_tensors(values)) == len(values)
        return _Variant(
            (lambda *given: compiled(list(given))) if plain else (lambda *given: compiled(_tensors(given))),
            lambda others: _fixed(others) == kept and holds(_tensors(others)),
        )


def _assumptions(traced: fx.GraphModule) -> Callable[[Sequence[torch.Tensor]], bool]:
    """Returns whether inputs have what tracing and compiling assumed of extents and strides."""
    placeholders = _examples(traced)
    shapes = _fake_mode(placeholders).shape_env
    assert shapes is not None
    names = [LocalSource(f"t{number}") for number in range(len(placeholders))]
    guards = shapes.produce_guards(placeholders, names, ignore_static=False)
    # In brackets: some are alternatives.
    condition = " and ".join(f"({guard})" for guard in guards)
    return lambda tensors: shapes.evaluate_guards_expression(condition, tensors)


def _examples(traced: fx.GraphModule) -> list[torch.Tensor]:
    """Returns the fake tensors of symbolic extents that a program was traced on."""
    return [node.meta["val"] for node in traced.graph.nodes if node.op == "placeholder"]


def _fake_mode(examples: Sequence[torch.Tensor]) -> FakeTensorMode:
    mode = detect_fake_mode(examples)
    assert mode is not None
    return mode


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
    return kinds, autocast_dtype(device_type(values))


def device_type(values: Sequence[Any]) -> str:
    """Returns the kind of device that the first tensor is on; ``"cpu"`` where there is none."""
    return next((value.device.type for value in values if isinstance(value, torch.Tensor)), "cpu")


def signature(values: Sequence[Any]) -> Hashable:
    """Returns the types, extents and strides of a program's inputs, and the values of its numbers.

    Where a tensor starts in its storage does not matter to a kernel, but for whether it is aligned.
    """
    # A list, since a generator is entered anew for every value.
    return tuple(
        [
            (value.shape, value.stride(), value.dtype, value.device, value.storage_offset() % _ALIGNED == 0)
            if isinstance(value, torch.Tensor)
            else (type(value).__name__, value)
            for value in values
        ]
    )
