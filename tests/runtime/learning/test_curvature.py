"""The curvature terms against their formulas, and the sampled gradient against autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from morphir.runtime.learning.curvature import CURVATURES, BatchLosses, sampled_logit_gradient

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
    torch.testing.assert_close(term.sampled_slope(tilde.detach()), by_tilde, rtol=1e-12, atol=0)


def test_layers_above_leave_less_of_the_shrunk_term_and_all_of_the_others() -> None:
    q, tilde = torch.randn(2, 3, 4, dtype=torch.float64)
    losses, left = BatchLosses(LOSSES.mean(), LOSSES), torch.tensor([1.0, 0.8, 0.5, 0.9])
    for name, term in CURVATURES.items():
        shrinks = name == "shrunk-fisher"
        expected = _formula(name, q, tilde / (1.2**0.5 if shrinks else 1.0))
        torch.testing.assert_close(term.below(10).estimate(q, tilde, losses), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            term.below(10).sampled_slope(tilde) * tilde / 2,
            term.sampled * tilde.square() / (1.2 if shrinks else 1.0),
            rtol=1e-12,
            atol=0,
        )
        expected = _formula(name, q, tilde * (left.sqrt() if shrinks else 1.0))
        torch.testing.assert_close(term.estimate(q, tilde, losses, left), expected, rtol=1e-6, atol=1e-6)


def test_sampled_gradient_is_that_of_a_drawn_label() -> None:
    logits = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.zeros(50, dtype=torch.int64)
    found = sampled_logit_gradient(logits, targets, torch.Generator().manual_seed(0))
    labels = found.argmin(dim=1)  # p - 1 is the one negative entry
    (expected,) = torch.autograd.grad(functional.cross_entropy(logits, labels, reduction="sum"), logits)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_labels_are_drawn_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    many = logits.expand(20_000, 3)
    generator = torch.Generator().manual_seed(0)
    labels = sampled_logit_gradient(many, torch.zeros(20_000, dtype=torch.int64), generator).argmin(dim=1)
    frequencies = labels.bincount(minlength=3) / 20_000
    torch.testing.assert_close(frequencies.double(), logits.softmax(0), rtol=0, atol=0.015)
