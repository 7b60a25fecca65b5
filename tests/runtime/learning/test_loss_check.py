"""A loss that is the batch's sum would make every score too large, and is refused in the first step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.runtime.learning.learner import Learner
from morphir.runtime.learning.loss_check import check_is_mean

OUTPUTS = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, 0.0]])
CLASSES = torch.tensor([0, 1, 1])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0])

cross_entropy_sum = partial(functional.cross_entropy, reduction="sum")


def weighted_mean(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Takes batches of three samples alone."""
    return (functional.cross_entropy(outputs, targets, reduction="none") * WEIGHTS).mean()


def noisy_mean(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs, targets) + torch.rand(())


@pytest.mark.parametrize(
    "loss",
    [
        functional.cross_entropy,
        partial(functional.cross_entropy, reduction="none"),
        weighted_mean,
        noisy_mean,
        lambda outputs, targets: outputs.sum() * 0,
    ],
)
def test_what_is_no_sum_passes(loss: Any) -> None:
    state = torch.get_rng_state()
    value = loss(OUTPUTS, CLASSES)
    torch.set_rng_state(state)
    check_is_mean(loss, OUTPUTS, CLASSES, value)
    assert torch.equal(torch.get_rng_state(), state)


def test_sums_are_refused_whatever_the_outputs_structure() -> None:
    cases: list[tuple[Any, Any]] = [
        (cross_entropy_sum, OUTPUTS),
        (lambda outputs, targets: cross_entropy_sum(outputs["logits"], targets), {"logits": OUTPUTS}),
    ]
    for loss, outputs in cases:
        with pytest.raises(MorphirError, match="the loss is a sum over the batch\n.*return the mean"):
            check_is_mean(loss, outputs, CLASSES, loss(outputs, CLASSES))


def test_a_learners_first_step_refuses_a_sum_and_later_steps_try_nothing() -> None:
    graph = trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(3, 4))
    sizes: list[int] = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        sizes.append(len(outputs))
        return functional.cross_entropy(outputs, targets)

    learner = Learner(graph, loss)
    for _ in range(2):
        learner.step(torch.randn(3, 4), CLASSES)
    assert sizes == [3, 6, 3]
    with pytest.raises(MorphirError, match="a sum over the batch"):
        Learner(graph, cross_entropy_sum).step(torch.randn(3, 4), CLASSES)
