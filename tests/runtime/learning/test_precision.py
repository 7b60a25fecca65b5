"""Estimates under autocast against the same in float64: a split's u is a small difference of large values."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional

import morphir
from morphir.errors import MorphirWarning

CLASSES = 10
BATCH = 32


class _Net(nn.Module):
    """A smooth region; maybe with a depthwise convolution, or a residual stream, in it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.mix, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.silu(self.norm(self.conv(x)))
        if self.kind == "depthwise":
            h = functional.silu(self.depthwise(h))
        h = self.mix(h)
        if self.kind == "residual":
            h = h + functional.silu(self.mix(functional.silu(h)))
        return self.head(functional.relu(h).mean((2, 3)))


def _scores(kind: str, dtype: torch.dtype, *, compile: bool = False, autocast: bool = False) -> torch.Tensor:
    """Returns the splits' estimates on one batch, with theta a tenth of the kernels."""
    model = _Net(kind).to(dtype)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    learner = morphir.Learner(
        morphir.trace(model, images[:2]),
        nn.CrossEntropyLoss(reduction="none"),
        learn_curvature="batch",
        score_curvature="batch",
        compile=compile,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        learner.step(images, labels)
    splits = [score.delta_loss for score in learner.scores() if isinstance(score.morphism, morphir.Split)]
    return torch.tensor(splits, dtype=torch.float64)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("kind", ["plain", "depthwise", "residual"])
def test_splits_under_autocast(kind: str, compile: bool) -> None:
    """Within 3 %, by norm; with regions in bfloat16 they would be off by 40 to 190 %."""
    if compile and shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a compiler")
    expected = _scores(kind, torch.float64)
    found = _scores(kind, torch.float32, compile=compile, autocast=True)
    assert len(found) >= 16
    assert float((found - expected).norm()) <= 0.03 * float(expected.norm())


def test_kernels_of_half_precision_are_warned_of() -> None:
    with pytest.warns(MorphirWarning, match=r"conv\.weight and 1 more kernels are of half precision"):
        _scores("plain", torch.bfloat16)
