"""The curvature terms against their formulas, and the sampled gradient against autograd."""

from __future__ import annotations

import itertools

import pytest
import torch

from morphir.runtime.learning.curvature import (
    CURVATURES,
    BatchLosses,
    sampled_logit_gradient,
    times_fisher_root,
)

LOSSES = torch.tensor([0.1, 2.0, 0.9], dtype=torch.float64)


def _formula(name: str, q: torch.Tensor, tilde: torch.Tensor) -> torch.Tensor:
    mean = LOSSES.mean()
    return {
        "batch": q + q**2 / (4 * mean),
        "fisher": q + tilde**2 / 2,
        "shrunk-fisher": q + tilde**2 / 2,
        "mixed": q + q**2 / (12 * mean) + tilde**2 / 3,
        "none": q,
        "empirical-fisher": q + q**2 / 2,
        "sample": q + q**2 / (4 * LOSSES.clamp_min(0.1 * float(mean))[:, None]),
    }[name]


@pytest.mark.parametrize("name", list(CURVATURES))
def test_estimate_and_slopes(name: str) -> None:
    q = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    tilde = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    term, losses = CURVATURES[name], BatchLosses(LOSSES.mean(), LOSSES)
    expected = _formula(name, q, tilde)
    torch.testing.assert_close(term.estimate(q, tilde, losses), expected, rtol=1e-12, atol=0)
    by_q, by_tilde = torch.autograd.grad(expected.sum(), (q, tilde), materialize_grads=True)
    slope = torch.as_tensor(term.slope(q.detach(), losses), dtype=torch.float64).expand(3, 4)
    torch.testing.assert_close(slope, by_q, rtol=1e-12, atol=0)
    if term.sampled is None:
        assert not by_tilde.any()
    else:
        torch.testing.assert_close(term.sampled_slope(tilde.detach()), by_tilde, rtol=1e-12, atol=0)


@pytest.mark.parametrize("layers", [10, torch.tensor([0, 1, 10, 50])])
def test_layers_above_leave_less_of_the_shrunk_term_and_all_of_the_others(layers: torch.Tensor | int) -> None:
    q, tilde = torch.randn(2, 3, 4, dtype=torch.float64)
    losses = BatchLosses(LOSSES.mean(), LOSSES)
    for name, term in CURVATURES.items():
        left = 1 / (1 + torch.as_tensor(layers, dtype=torch.float64) / 50)
        shrunk = tilde * left.sqrt() if name == "shrunk-fisher" else tilde
        found = term.below(layers)
        torch.testing.assert_close(
            found.estimate(q, tilde, losses), _formula(name, q, shrunk), rtol=1e-6, atol=1e-6
        )
        if found.sampled is not None and term.sampled is not None:
            expected = 2 * term.sampled * shrunk**2
            torch.testing.assert_close(found.sampled_slope(tilde) * tilde, expected, rtol=1e-6, atol=1e-6)


def test_over_all_signs_the_root_makes_the_fisher_of_the_softmax() -> None:
    """Against the second derivative of the negative log-likelihood, which holds for every label."""
    logits = torch.tensor([[0.0, 1.0, -1.0, 3.0], [9.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    for sample in logits:
        drawn = times_fisher_root(sample.softmax(0).expand(16, 4), signs)
        hessian = torch.autograd.functional.hessian(lambda z: -z.log_softmax(0)[2], sample)
        torch.testing.assert_close(drawn.T @ drawn / 16, hessian, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("first", [0.5, 0.9, 0.999])
def test_a_confident_sample_varies_little(first: float) -> None:
    """Of two classes, the relative variance of a square is 4 p (1 - p)."""
    p = torch.tensor([first, 1 - first], dtype=torch.float64)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)), dtype=torch.float64)
    squares = times_fisher_root(p.expand(4, 2), signs)[:, 0].square()
    variance = float(squares.var(correction=0) / squares.mean().square())
    assert variance == pytest.approx(4 * first * (1 - first), rel=1e-9)


def test_the_signs_are_fair_and_independent() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    many = logits.expand(20_000, 3)
    targets = torch.zeros(20_000, dtype=torch.int64)
    drawn = sampled_logit_gradient(many, targets, torch.Generator().manual_seed(0))
    p = logits.softmax(0)
    torch.testing.assert_close(drawn.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.01)
    fisher = p.diag() - p.outer(p)
    torch.testing.assert_close(drawn.T @ drawn / 20_000, fisher, rtol=0, atol=0.005)
