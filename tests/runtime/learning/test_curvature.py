"""The curvature terms against their formulas."""

from __future__ import annotations

import pytest
import torch

from morphir.runtime.learning.curvature import CURVATURES, BatchLosses

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
    torch.testing.assert_close(q + term.second_order(q, tilde, losses), expected, rtol=1e-12, atol=0)
    assert term.bends == (name != "none")
    by_q, by_tilde = torch.autograd.grad(expected.mean(0).sum(), (q, tilde), materialize_grads=True)
    slopes = term.slopes(losses, 3)
    torch.testing.assert_close(slopes.by_q(q.detach()).expand(3, 4), by_q, rtol=1e-12, atol=0)
    last = slopes.of(slice(2, 3)).by_q(q.detach()[2:])
    torch.testing.assert_close(last.expand(1, 4), by_q[2:], rtol=1e-12, atol=0)
    sampled_slope = slopes.by_sampled(tilde.detach())
    if sampled_slope is None:
        assert term.sampled is None and not by_tilde.any()
    else:
        torch.testing.assert_close(sampled_slope, by_tilde, rtol=1e-12, atol=0)


@pytest.mark.parametrize("layers", [10, torch.tensor([0, 1, 10, 50])])
def test_layers_above_leave_less_of_the_shrunk_term_and_all_of_the_others(layers: torch.Tensor | int) -> None:
    q, tilde = torch.randn(2, 3, 4, dtype=torch.float64)
    losses = BatchLosses(LOSSES.mean(), LOSSES)
    for name, term in CURVATURES.items():
        left = 1 / (1 + torch.as_tensor(layers, dtype=torch.float64) / 50)
        shrunk = tilde * left.sqrt() if name == "shrunk-fisher" else tilde
        found = term.below(layers)
        torch.testing.assert_close(
            q + found.second_order(q, tilde, losses), _formula(name, q, shrunk), rtol=1e-6, atol=1e-6
        )
        if found.sampled is not None and term.sampled is not None:
            expected = 2 * term.sampled * shrunk**2 / 3
            sampled_slope = found.slopes(losses, 3).by_sampled(tilde)
            assert sampled_slope is not None
            torch.testing.assert_close(sampled_slope * tilde, expected, rtol=1e-6, atol=1e-6)
