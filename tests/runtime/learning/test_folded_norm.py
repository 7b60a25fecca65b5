"""Batch norm as a part of the operator before it: whether the kernel or the output is scaled is no matter."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import morphir
from morphir.runtime.learning.folded_norm import FoldedNorm


def _network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 4), (4, 6), (6, 5)):
        norm = nn.BatchNorm2d(outputs)
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 7)).double()


def _learned(example_batch: int) -> tuple[list[bool], list[float]]:
    """Returns which kernels are scaled, and all estimates: the choice hangs on the example's size."""
    learner = morphir.Learner(
        morphir.trace(_network(), torch.zeros(example_batch, 3, 2, 2).double()), cross_entropy
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        images = torch.randn(8, 3, 2, 2, generator=generator, dtype=torch.float64)
        learner.step(images, torch.randint(0, 7, (8,), generator=generator))
    folded = [x.scales_kernel for x in learner.lowered.derived if isinstance(x, FoldedNorm)]
    return folded, [score.delta_loss for score in learner.scores()]


def test_scaling_the_kernel_or_the_output_learns_the_same() -> None:
    outputs_scaled, estimates = _learned(example_batch=2)
    kernels_scaled, others = _learned(example_batch=64)
    assert (outputs_scaled, kernels_scaled) == ([False] * 3, [True] * 3)
    torch.testing.assert_close(estimates, others, rtol=1e-9, atol=1e-13)
