"""What cannot be traced is told apart: a compiled model, one without sizes, one that itself fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphir.analysis.tracing import trace
from morphir.errors import TraceError

X = torch.zeros(2, 3, 8, 8)


class Fails(nn.Module):
    """Raises what it is told to."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.error, ZeroDivisionError):
            return self.conv(x) * (1 / 0)
        raise self.error


def test_a_compiled_model_is_refused_with_the_way_out() -> None:
    compiled: Any = torch.compile(nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(TraceError, match="torch.compile made of it\n.*trace the model itself"):
        trace(compiled, X)


def test_lazy_modules_have_to_run_first() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 1), nn.ReLU(), nn.LazyConv2d(2, 1))
    with pytest.raises(
        TraceError, match="not initialised yet: 0.weight, 0.bias, 2.weight, 2.bias\n.*run the"
    ):
        trace(model, X)
    model(X)
    assert trace(model, X).spaces["0"].width == 4


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ZeroDivisionError(), "ZeroDivisionError: division by zero"),
        (KeyError("scale"), "KeyError: 'scale'"),
        (RuntimeError("out of order"), "out of order"),
    ],
)
def test_a_model_that_fails_by_itself_is_no_fault_of_tracing(error: Exception, message: str) -> None:
    with pytest.raises(TraceError, match=f"the model fails on the example inputs: {message}") as caught:
        trace(Fails(error), X)
    assert type(caught.value.__cause__) is type(error)
    assert "test_traceable.py" in str(caught.value.source)
    assert "control flow" not in str(caught.value.hint)


def test_so_does_one_inside_another() -> None:
    with pytest.raises(TraceError, match="fails on the example inputs: ZeroDivisionError"):
        trace(nn.Sequential(nn.Conv2d(3, 3, 1), Fails(ZeroDivisionError())), X)
