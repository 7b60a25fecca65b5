"""Functions that the trace keeps whole are written out with what they read, or refused with the reason."""

from __future__ import annotations

import json
import math
from math import sqrt
from pathlib import Path

import pytest
import torch
import torch.nn.functional
from torch import Tensor, fx, nn

from exporters import export_pytorch
from exporters.pytorch_source import load_exported
from exporters.source.inlining import inlined
from morphir.analysis.tracing import trace
from morphir.errors import ExportError

SCALE = 0.5
TABLE = {"scale": 2}


def halves(x: Tensor, times: int = 1) -> list[Tensor]:
    """Cuts in two."""
    total: int = 2
    return [part * SCALE**times for part in x.chunk(total, dim=1)]


@fx.wrap
def gate(x: Tensor, power: float | None = None) -> Tensor:
    """Reads a module, a constant, a function of torch, one of math, and another function."""
    first, second = halves(x)
    if power is None:
        power = sqrt(4) / math.pi
    limit = lambda value: torch.nn.functional.relu(value).clamp(max=3.0)  # noqa: E731
    return limit(first) ** power * second.sigmoid()


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(gate(self.conv(x)).mean((2, 3))) + gate(x[:, :2, :1, :2].flatten(1), power=2.0)


def test_a_function_is_written_out_with_what_it_reads(tmp_path: Path) -> None:
    graph = trace(Gated().eval(), torch.rand(2, 3, 5, 5))
    exported = export_pytorch(graph, tmp_path / "net.py")
    text = exported.source.read_text()
    assert text.count("def gate(") == text.count("def halves(") == text.count("@torch.fx.wrap") == 1
    assert "return [part * 0.5 ** times for part in x.chunk(total, dim=1)]" in text
    again = trace(load_exported(exported.source, "Gated").eval(), torch.rand(2, 3, 5, 5))
    assert {name: space.width for name, space in again.spaces.items()} == {"conv": 3, "head": 1}
    second = export_pytorch(again, tmp_path / "again.py")
    body = text[text.index("@torch.fx.wrap") : text.index("def load(")]
    assert body in second.source.read_text()


def reads_json(x: Tensor) -> Tensor:
    return x * json.loads("1")


def reads_table(x: Tensor) -> Tensor:
    return x * TABLE["scale"]


def reads_nothing(x: Tensor) -> Tensor:
    return x * undefined  # noqa: F821  # pyright: ignore


def reads_reserved(x: Tensor) -> Tensor:
    return load(x)


def load(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (reads_json, "it reads json, which is not torch's"),
        (reads_table, "it reads TABLE, which is not torch's"),
        (reads_nothing, "it reads undefined, which is not defined"),
        (reads_reserved, "gives the name 'load' another meaning"),
        (lambda x: x, "it is not a plain function"),
    ],
)
def test_what_cannot_be_written_out_is_refused(function: object, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        inlined(function)


def test_closures_and_recursion() -> None:
    depth = 3

    def repeat(x: Tensor, times: int = depth) -> Tensor:
        return x if times == 0 else repeat(x + depth, times - 1)

    (text,) = inlined(repeat).values()
    assert "repeat(x + 3, times - 1)" in text
