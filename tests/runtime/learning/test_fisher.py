"""The sampled Fisher against second derivatives of the loss by autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from morphir import Learner, MorphirError, trace
from morphir.runtime.learning.fisher import row_weights, sampled_logit_gradient, times_fisher_root

ROWS, CLASSES = 6, 4
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
LABELS = torch.tensor([0, 3, 2, 1, 1, 0])
SOFTMAX_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "each": partial(functional.cross_entropy, reduction="none"),
    "mean": functional.cross_entropy,
    "smoothed": partial(functional.cross_entropy, label_smoothing=0.2),
    "weighted": partial(functional.cross_entropy, weight=WEIGHTS),
    "ignoring": partial(functional.cross_entropy, ignore_index=1),
    "scaled": lambda outputs, labels: 0.1 * functional.cross_entropy(outputs, labels),
}


def _signs(classes: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=classes)), dtype=torch.float64)


def test_over_all_signs_the_root_makes_the_fisher_of_the_softmax() -> None:
    """Against the second derivative of the negative log-likelihood, which holds for every label."""
    logits = torch.tensor([[0.0, 1.0, -1.0, 3.0], [9.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    for sample in logits:
        drawn = times_fisher_root(sample.softmax(0).expand(16, 4), _signs(4))
        hessian = torch.autograd.functional.hessian(lambda z: -z.log_softmax(0)[2], sample)
        torch.testing.assert_close(drawn.T @ drawn / 16, hessian, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("first", [0.5, 0.9, 0.999])
def test_a_confident_sample_varies_little(first: float) -> None:
    """Of two classes, the relative variance of a square is 4 p (1 - p)."""
    p = torch.tensor([first, 1 - first], dtype=torch.float64)
    squares = times_fisher_root(p.expand(4, 2), _signs(2))[:, 0].square()
    variance = float(squares.var(correction=0) / squares.mean().square())
    assert variance == pytest.approx(4 * first * (1 - first), rel=1e-9)


@pytest.mark.parametrize("name", list(SOFTMAX_LOSSES))
def test_the_second_moment_is_the_hessian_of_the_summed_loss(name: str) -> None:
    """Whatever a row counts; every row's Hessian, from many draws for the same logits."""
    torch.manual_seed(0)
    loss, copies = SOFTMAX_LOSSES[name], 4000
    logits = 2 * torch.randn(ROWS, CLASSES, dtype=torch.float64)
    many = logits.repeat(copies, 1).requires_grad_()
    value = loss(many, LABELS.repeat(copies))
    whole = torch.full_like(value, 1 if value.dim() else copies * ROWS)
    generator = torch.Generator().manual_seed(0)
    drawn = sampled_logit_gradient(many, LABELS.repeat(copies), value, whole, generator)
    own = drawn.view(copies, ROWS, CLASSES)
    moments = torch.einsum("cri,crj->rij", own, own) / copies

    def summed(rows: torch.Tensor) -> torch.Tensor:
        found = loss(rows, LABELS)
        return found.sum() if found.dim() else found * ROWS

    hessian: Any = torch.autograd.functional.hessian(summed, logits)
    expected = torch.stack([hessian[row, :, row] for row in range(ROWS)])
    torch.testing.assert_close(moments, expected, rtol=0.05, atol=0.02 * float(expected.abs().max()))
    assert not moments[expected.flatten(1).abs().sum(1) == 0].any()


@pytest.mark.parametrize("name", list(SOFTMAX_LOSSES))
def test_a_rows_weight_is_the_same_along_every_vector(name: str) -> None:
    torch.manual_seed(1)
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64)

    def summed(rows: torch.Tensor) -> torch.Tensor:
        return SOFTMAX_LOSSES[name](rows, LABELS).sum()

    found = [
        row_weights(logits.softmax(1), along, torch.autograd.functional.hvp(summed, logits, along)[1])
        for along in torch.randn(3, ROWS, CLASSES, dtype=torch.float64)
    ]
    torch.testing.assert_close(found[1:], found[:1] * 2, rtol=1e-9, atol=1e-12)


def test_a_confident_row_stays_finite() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    labels, generator = torch.tensor([0, 1]), torch.Generator().manual_seed(0)
    value = functional.cross_entropy(logits, labels, reduction="none")
    drawn = sampled_logit_gradient(logits, labels, value, torch.ones(2), generator)
    assert drawn.isfinite().all() and not drawn[0].any() and drawn[1].any()


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits)
        return logits.square().sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return 2 * ctx.saved_tensors[0] * gradients[0][:, None]


def _once(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    del labels
    return _Once.apply(outputs)


def _linear(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -outputs.gather(1, labels[:, None]).squeeze(1)


@pytest.mark.parametrize("loss", [_once, _linear])
def test_a_gradient_that_cannot_be_differentiated_again_has_no_fisher(loss: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    graph = trace(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.zeros(2, 4))
    batch = torch.randn(2, 4), torch.tensor([0, 1])
    found: list[list[float]] = []
    for name in ("auto", "batch"):
        learner = Learner(graph, loss, learn_curvature=name, score_curvature=name, init_scale=0.5)
        learner.step(*batch)
        found.append([score.delta_loss for score in learner.scores()])
    assert found[0] == found[1]
    with pytest.raises(MorphirError, match="differentiated again"):
        Learner(graph, loss, learn_curvature="fisher").step(*batch)


def test_one_logit_has_no_softmax() -> None:
    """A binary classifier's single logit, with integer labels."""
    torch.manual_seed(0)
    graph = trace(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1)), torch.zeros(2, 4))

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], labels.float())

    batch = torch.randn(6, 4), torch.arange(6) % 2
    found: dict[str, list[float]] = {}
    for name in ("auto", "batch", "none"):
        learner = Learner(graph, loss, learn_curvature=name, score_curvature=name, init_scale=0.5)
        learner.step(*batch)
        found[name] = [score.delta_loss for score in learner.scores()]
    assert found["auto"] == found["batch"] != found["none"]
    with pytest.raises(MorphirError, match="two or more classes"):
        Learner(graph, loss, learn_curvature="fisher").step(*batch)
