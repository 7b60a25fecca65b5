"""A convolution without the taps that meet padding alone, against the whole convolution in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from morphir import Learner, trace
from morphir.runtime.learning.linear_ops import module_apply
from morphir.runtime.learning.live_taps import live_taps


def _met(size: int, kernel: int, stride: int, padding: int, dilation: int) -> set[int]:
    """Which taps change what comes out, found by convolving ones with one tap at a time."""
    values = torch.ones(1, 1, size)
    return {
        tap
        for tap in range(kernel)
        if functional.conv1d(
            values, torch.eye(kernel)[tap].view(1, 1, -1), None, stride, padding, dilation
        ).any()
    }


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3))
)
def test_what_is_left_out_meets_padding_alone(axis: tuple[int, int, int, int, int]) -> None:
    size, kernel, _, padding, dilation = axis
    if size + 2 * padding < dilation * (kernel - 1) + 1:
        return
    live = live_taps(*((value,) for value in axis))
    if live is not None:
        assert _met(*axis) <= set(range(kernel)[live.taps[0]])


@pytest.mark.parametrize(
    ("axis", "left"),
    [
        ((1, 3, 1, 1, 1), (slice(1, 2), 0)),
        ((2, 3, 2, 1, 1), (slice(1, 3), 0)),
        ((2, 3, 1, 1, 1), None),
        ((1, 5, 1, 2, 1), (slice(2, 3), 0)),
        ((2, 5, 1, 2, 1), (slice(1, 4), 1)),
        ((2, 3, 1, 4, 4), (slice(1, 2), 0)),
    ],
)
def test_the_taps_that_are_left(axis: tuple[int, int, int, int, int], left: tuple[slice, int] | None) -> None:
    live = live_taps(*((value,) for value in axis))
    assert (None if live is None else (live.taps[0], live.padding[0])) == left


@given(
    st.sampled_from([nn.Conv1d, nn.Conv2d, nn.Conv3d]),
    st.data(),
)
def test_values_and_gradients_are_those_of_the_whole_convolution(
    kind: type[nn.Conv1d | nn.Conv2d | nn.Conv3d], data: st.DataObject
) -> None:
    axes = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[kind]
    each = st.tuples(*[st.integers(1, 3)] * axes)
    sizes, kernel, stride, dilation = (data.draw(each) for _ in range(4))
    padding = data.draw(st.tuples(*[st.integers(0, 2)] * axes))
    if any(n + 2 * p < d * (k - 1) + 1 for n, k, p, d in zip(sizes, kernel, padding, dilation, strict=True)):
        return
    torch.manual_seed(0)
    module = kind(4, 6, kernel, stride, padding, dilation, groups=2).double()
    apply = module_apply(module)
    assert apply is not None
    values = torch.randn(2, 4, *sizes, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(module.weight).requires_grad_()
    found = apply(values, weight, module.bias)
    expected = module._conv_forward(values, weight, module.bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(found)
    for own, other in zip(
        torch.autograd.grad(found, [values, weight], gradient),
        torch.autograd.grad(expected, [values, weight], gradient),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def test_a_network_that_ends_in_single_positions_is_learned_as_with_whole_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images of 4 pixels: the last layers see 2 x 2 and 1 x 1; scores and thetas after three steps."""

    def learned() -> tuple[list[float], list[torch.Tensor]]:
        torch.manual_seed(3)
        model = nn.Sequential(
            *(nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.ReLU()),
            *(nn.Conv2d(5, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
        ).double()
        images, labels = torch.randn(8, 3, 4, 4, dtype=torch.float64), torch.arange(8) % 3
        learner = Learner(trace(model, images), functional.cross_entropy, init_scale=0.5)
        for _ in range(3):
            learner.step(images, labels)
        thetas = [theta.value.detach() for own in learner.thetas.values() for theta in own.values()]
        return [score.delta_loss for score in learner.scores()], thetas

    scores, thetas = learned()
    assert live_taps((1, 1), (3, 3), (1, 1), (1, 1), (1, 1)) is not None
    monkeypatch.setattr("morphir.runtime.learning.linear_ops.live_taps", lambda *_: None)
    whole_scores, whole_thetas = learned()
    assert scores == pytest.approx(whole_scores, rel=1e-9)
    for own, other in zip(thetas, whole_thetas, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "changed",
    [
        {"stride": 2},
        {"padding": 1},
        {"dilation": 2, "padding": 4},
        {"stride": [2, 1]},
        {"stride": (2,), "padding": [1]},
        {"weight": nn.Parameter(torch.ones(4, 3, 2, 2, dtype=torch.float64))},
    ],
    ids=str,
)
def test_options_and_kernels_that_were_set_later_are_taken_as_pytorch_takes_them(changed: dict) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 5, padding=2).double()
    for name, value in changed.items():
        setattr(convolution, name, value)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    apply = module_apply(convolution)
    assert apply is not None
    torch.testing.assert_close(
        apply(x, convolution.weight, convolution.bias), convolution(x), rtol=1e-12, atol=1e-12
    )
