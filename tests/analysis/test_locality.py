"""The paper's x, y, region, a and z, on nets small enough to name them by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.locality import locality
from morphir.analysis.tracing import trace
from morphir.errors import MorphirError


class SqueezeExcite(nn.Module):
    """A gated block with a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.squeeze = nn.Conv2d(4, 2, 1)
        self.expand = nn.Conv2d(2, 4, 1)
        self.kernel = nn.Parameter(torch.randn(3, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        stem = F.relu(self.stem(x))
        y = self.bn(self.conv(stem))
        gate = torch.sigmoid(self.expand(self.squeeze(y.mean((2, 3), keepdim=True))))
        return F.conv2d(stem + y * gate, self.kernel).flatten(1)


def test_a_gated_residual_stream() -> None:
    graph = trace(SqueezeExcite(), torch.randn(2, 3, 5, 5))
    assert list(graph.spaces) == ["stem", "squeeze", "kernel"]
    found = locality(graph, "stem")
    assert found.x == ("x", "relu", "squeeze")
    assert found.y == ("stem", "conv", "expand")
    assert found.region == ("relu", "bn", "mean", "sigmoid", "mul", "add")
    assert found.a == ("relu", "mean", "add")
    assert found.z == ("conv", "squeeze", "conv2d")


def test_a_chain() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Conv2d(2, 5, 1), nn.Flatten()
    )
    graph = trace(model, torch.randn(2, 3, 8, 8))
    first, second, last = (locality(graph, name) for name in ("0", "3", "4"))
    assert (first.x, first.y, first.region) == (("input_1",), ("_0",), ("_1", "_2"))
    assert (first.a, first.z) == (("_2",), ("_3",))
    assert (second.y, second.region, second.a, second.z) == (("_3",), (), ("_3",), ("_4",))
    assert (last.y, last.region, last.a, last.z) == (("_4",), (), (), ())


def test_what_does_not_lead_to_a_consumer_is_no_region() -> None:
    class SideBranch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 4)
            self.two = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.one(x)
            return self.two(F.relu(y)), torch.sigmoid(y)

    assert locality(trace(SideBranch(), torch.randn(2, 3)), "one").region == ("relu",)


def test_it_prints_with_the_users_lines() -> None:
    graph = trace(SqueezeExcite(), torch.randn(2, 3, 5, 5))
    line = SqueezeExcite.forward.__code__.co_firstlineno + 3
    gate = f"(test_locality.py:{line})"
    assert str(locality(graph, "squeeze")) == "\n".join(
        [
            "locality of squeeze",
            f"  x      %mean {gate}",
            f"  y      %squeeze {gate}",
            "  region (none)",
            f"  a      %squeeze {gate}",
            f"  z      %expand {gate}",
        ]
    )


def test_an_unknown_space_is_named() -> None:
    with pytest.raises(MorphirError, match="no channel space 'fc'"):
        locality(trace(SqueezeExcite(), torch.randn(2, 3, 5, 5)), "fc")
