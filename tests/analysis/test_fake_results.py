"""What is said without a fake kernel is what the kernel says, and an error is the kernel's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from morphir.analysis.rules.fake_results import QUICK, fake_result

ATEN = torch.ops.aten
Made = Callable[[], tuple[Any, ...]]


def image(*shape: int, **options: Any) -> torch.Tensor:
    return torch.empty(shape, **options)


def of_channels(count: int, parameters: int = 4) -> tuple[torch.Tensor | None, ...]:
    return tuple(torch.empty(count) if index < parameters else None for index in range(4))


def convolved(
    source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, **options: Any
) -> Any:
    rank = source.dim() - 2
    groups = options.get("groups", 1)
    return (
        source,
        weight,
        bias,
        [2] * rank,
        [1] * rank,
        [1] * rank,
        options.get("transposed", False),
        [0] * rank,
        groups,
    )


CASES: dict[str, tuple[Any, Made]] = {
    "relu": (ATEN.relu.default, lambda: (image(2, 3, 4, 4),)),
    "relu, single channel": (ATEN.relu.default, lambda: (image(2, 1, 1, 1),)),
    "relu, moved": (ATEN.relu.default, lambda: (image(2, 3, 4, 5).transpose(1, 2),)),
    "relu, channels last": (
        ATEN.relu.default,
        lambda: (image(2, 3, 4, 5, memory_format=torch.channels_last),),
    ),
    "relu, nothing": (ATEN.relu.default, lambda: (image(0, 3),)),
    "relu of integers": (ATEN.relu.default, lambda: (image(2, 3, dtype=torch.int64),)),
    "sigmoid of integers": (ATEN.sigmoid.default, lambda: (image(2, 3, dtype=torch.int64),)),
    "relu of halves": (ATEN.relu.default, lambda: (image(2, 3, dtype=torch.bfloat16),)),
    "relu in place": (ATEN.relu_.default, lambda: (image(2, 3),)),
    "hardtanh in place": (ATEN.hardtanh_.default, lambda: (image(2, 3), 0.0, 6.0)),
    "gelu": (ATEN.gelu.default, lambda: (image(2, 3, 5),)),
    "leaky relu": (ATEN.leaky_relu.default, lambda: (image(2, 3, 5), 0.1)),
    "sum": (ATEN.add.Tensor, lambda: (image(2, 3), image(2, 3))),
    "broadcast sum": (ATEN.add.Tensor, lambda: (image(2, 3, 4, 4), image(3, 1, 1))),
    "sum of two types": (ATEN.add.Tensor, lambda: (image(2, 3), image(2, 3, dtype=torch.float64))),
    "sum with a number": (ATEN.add.Tensor, lambda: (image(2, 3), 1.0)),
    "sum that does not fit": (ATEN.add.Tensor, lambda: (image(2, 3), image(2, 4))),
    "product": (ATEN.mul.Tensor, lambda: (image(2, 3, 1, 1), image(2, 3, 1, 1))),
    "gate": (ATEN.mul.Tensor, lambda: (image(2, 3, 4, 4), image(2, 3, 1, 1))),
    "batch norm": (
        ATEN.native_batch_norm.default,
        lambda: (image(2, 3, 4, 4), *of_channels(3), False, 0.1, 1e-5),
    ),
    "batch norm of vectors": (
        ATEN.native_batch_norm.default,
        lambda: (image(2, 3), *of_channels(3), False, 0.1, 1e-5),
    ),
    "batch norm that does not fit": (
        ATEN.native_batch_norm.default,
        lambda: (image(2, 3, 4, 4), *of_channels(4), False, 0.1, 1e-5),
    ),
    "batch norm without statistics": (
        ATEN.native_batch_norm.default,
        lambda: (image(2, 3, 4, 4), *of_channels(3, 2), False, 0.1, 1e-5),
    ),
    "batch norm in training": (
        ATEN.native_batch_norm.default,
        lambda: (image(2, 3, 4, 4), *of_channels(3), True, 0.1, 1e-5),
    ),
    "convolution": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 3, 9, 9), image(5, 3, 3, 3), image(5)),
    ),
    "pointwise convolution": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 3, 1, 1), image(5, 3, 1, 1)),
    ),
    "convolution of one channel": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 1, 8, 8), image(1, 1, 3, 3)),
    ),
    "depthwise": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 4, 8, 8), image(4, 1, 3, 3), groups=4),
    ),
    "transposed": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 3, 8, 8), image(3, 5, 3, 3), transposed=True),
    ),
    "convolution of a series": (ATEN.convolution.default, lambda: convolved(image(2, 3, 9), image(5, 3, 3))),
    "convolution of a volume": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 3, 9, 9, 9), image(5, 3, 3, 3, 3)),
    ),
    "convolution, channels last": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 3, 9, 9, memory_format=torch.channels_last), image(5, 3, 3, 3)),
    ),
    "kernel, channels last": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 3, 9, 9), image(5, 3, 3, 3, memory_format=torch.channels_last)),
    ),
    "convolution that does not fit": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 3, 9, 9), image(5, 4, 3, 3)),
    ),
    "convolution whose bias does not fit": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 3, 9, 9), image(5, 3, 3, 3), image(4)),
    ),
    "groups that do not fit": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 4, 9, 9), image(5, 2, 3, 3), groups=2),
    ),
    "kernel that is too large": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 3, 1, 1), image(5, 3, 4, 4)),
    ),
    "dilated": (
        ATEN.convolution.default,
        lambda: (image(2, 3, 9, 8), image(5, 3, 3, 2), None, [2, 1], [0, 2], [2, 3], False, [0, 0], 1),
    ),
    "one stride for all": (
        ATEN.convolution.default,
        lambda: (image(2, 3, 9, 9), image(5, 3, 3, 3), None, [2], [1], [1], False, [0], 1),
    ),
    "negative padding": (
        ATEN.convolution.default,
        lambda: (image(2, 3, 9, 9), image(5, 3, 3, 3), None, [1, 1], [-1, 0], [1, 1], False, [0, 0], 1),
    ),
    "stride of nothing": (
        ATEN.convolution.default,
        lambda: (image(2, 3, 9, 9), image(5, 3, 3, 3), None, [0, 1], [1, 1], [1, 1], False, [0, 0], 1),
    ),
    "convolution without channels": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 0, 9, 9), image(5, 0, 3, 3)),
    ),
    "convolution without samples": (
        ATEN.convolution.default,
        lambda: convolved(image(0, 3, 9, 9), image(5, 3, 3, 3)),
    ),
    "convolution of one image": (
        ATEN.convolution.default,
        lambda: (image(3, 9, 9), image(5, 3, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    ),
    "convolution of two types": (
        ATEN.convolution.default,
        lambda: convolved(image(2, 3, 9, 9), image(5, 3, 3, 3, dtype=torch.float64)),
    ),
    "concatenation": (
        ATEN.cat.default,
        lambda: ([image(2, 3, 4, 4), image(2, 5, 4, 4), image(2, 1, 4, 4)], 1),
    ),
    "concatenation, last": (ATEN.cat.default, lambda: ([image(2, 3), image(2, 4)], -1)),
    "concatenation, first": (ATEN.cat.default, lambda: ([image(2, 3), image(1, 3)],)),
    "concatenation of one": (ATEN.cat.default, lambda: ([image(2, 3)], 1)),
    "concatenation with nothing": (ATEN.cat.default, lambda: ([image(0), image(2, 3)], 1)),
    "concatenation with nothing behind": (ATEN.cat.default, lambda: ([image(2, 3), image(0)], 1)),
    "concatenation with nothing, from behind": (ATEN.cat.default, lambda: ([image(2, 3), image(0)], -1)),
    "concatenation of other ranks": (ATEN.cat.default, lambda: ([image(2, 3, 1), image(2, 3)], 2)),
    "silu": (ATEN.silu.default, lambda: (image(2, 3),)),
    "tanh": (ATEN.tanh.default, lambda: (image(2, 3),)),
    "sigmoid, doubles": (ATEN.sigmoid.default, lambda: (image(2, 3, dtype=torch.float64),)),
    "hardtanh": (ATEN.hardtanh.default, lambda: (image(2, 3),)),
    "hardsigmoid": (ATEN.hardsigmoid.default, lambda: (image(2, 3),)),
    "hardswish": (ATEN.hardswish.default, lambda: (image(2, 3),)),
    "concatenation with no channels": (ATEN.cat.default, lambda: ([image(2, 0, 4), image(2, 3, 4)], 1)),
    "concatenation that does not fit": (ATEN.cat.default, lambda: ([image(2, 3), image(3, 3)], 1)),
    "concatenation of ranks": (ATEN.cat.default, lambda: ([image(2, 3), image(2, 3, 1)], 1)),
    "concatenation along no dimension": (ATEN.cat.default, lambda: ([image(2, 3), image(2, 3)], 2)),
    "concatenation of types": (
        ATEN.cat.default,
        lambda: ([image(2, 3), image(2, 3, dtype=torch.float64)], 1),
    ),
    "concatenation of formats": (
        ATEN.cat.default,
        lambda: ([image(2, 3, 4, 4, memory_format=torch.channels_last), image(2, 3, 4, 4)], 1),
    ),
}


def described(work: Callable[[], Any]) -> Any:
    """Returns what is seen of a result from outside, or what is raised."""
    try:
        result = work()
    except Exception as error:
        return type(error), str(error)
    return [
        (tuple(t.shape), t.stride(), t.dtype, t.device)
        for t in (result if isinstance(result, tuple) else (result,))
    ]


@pytest.mark.parametrize(("func", "made"), CASES.values(), ids=CASES)
def test_a_quick_result_is_the_kernels(func: Any, made: Made) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        arguments = made()
        quick = described(lambda: fake_result(mode, func, arguments, {}, known=False))
        kernel = described(lambda: func(*arguments))
    if func is ATEN.native_batch_norm.default:  # nothing reads the statistics
        quick, kernel = quick[:1], kernel[:1]
    assert quick == kernel


def test_every_quick_operator_is_compared() -> None:
    compared = {func for func, _ in CASES.values()}
    in_place = {func for func in QUICK if func.name().endswith("_")}
    assert compared | in_place == QUICK.keys() - {torch.ops.prim.device.default}


def test_an_operator_in_place_yields_its_input() -> None:
    with FakeTensorMode() as mode:
        source = torch.empty(2, 3)
        assert fake_result(mode, ATEN.relu_.default, (source,), {}, known=False) is source


def test_known_values_are_passed_on() -> None:
    with FakeTensorMode() as mode:
        number = torch.tensor(2.0)
        assert float(fake_result(mode, ATEN.add.Tensor, (number, number), {}, known=False)) == 4.0


def test_what_a_batch_norm_reserves_is_empty() -> None:
    with FakeTensorMode() as mode:
        options = {"dtype": torch.uint8, "layout": torch.strided, "device": torch.device("cpu")}
        empty = ATEN.empty.memory_format
        quick = described(lambda: fake_result(mode, empty, ([0],), options, known=False))
        assert quick == described(lambda: empty([0], **options))
