"""Pooling over windows that do not overlap, against PyTorch: values, gradients, the choice among equals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional

from morphir import Learner, trace
from morphir.runtime.learning.window_max import fuse_pools, window_max, window_of

POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


@given(st.integers(1, 3), st.data())
def test_values_and_gradients(axes: int, data: st.DataObject) -> None:
    extents = tuple(data.draw(st.integers(1, 3)) for _ in range(axes))
    sizes = tuple(data.draw(st.integers(extent, 7)) for extent in extents)
    # Few different values: most windows have several that are the largest.
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randint(0, 3, (2, 3, *sizes), generator=generator).double().requires_grad_()
    expected = POOLS[axes](x, extents)
    found = window_max(x, extents)
    assert torch.equal(found, expected)
    slope = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    by_x = torch.autograd.grad(expected, x, slope)[0]
    assert torch.equal(torch.autograd.grad(found, x, slope)[0], by_x)


@pytest.mark.parametrize(
    ("pool", "extents"),
    [
        (nn.MaxPool2d(2), (2, 2)),
        (nn.MaxPool2d((1, 2)), (1, 2)),
        (nn.MaxPool2d((2,)), (2, 2)),
        (nn.MaxPool2d(3, 3), (3, 3)),
        (nn.MaxPool1d(2, 2), (2,)),
        (nn.MaxPool3d(2), (2, 2, 2)),
        (nn.MaxPool3d(3), None),
        (nn.MaxPool2d(3, 2), None),
        (nn.MaxPool2d(2, padding=1), None),
        (nn.MaxPool2d(2, dilation=2), None),
        (nn.MaxPool2d(2, ceil_mode=True), None),
        (nn.MaxPool2d(2, return_indices=True), None),
        (nn.AvgPool2d(2), None),
        (None, None),
    ],
    ids=str,
)
def test_which_pools(pool: nn.Module | None, extents: tuple[int, ...] | None) -> None:
    assert window_of(pool) == extents


def test_a_program_s_pools_are_replaced_where_they_can_be() -> None:
    model = nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.MaxPool2d((2, 1)))
    program = fx.symbolic_trace(model).graph
    fuse_pools(program, model)
    assert sum(node.target is window_max for node in program.nodes) == 2
    x = torch.randn(2, 3, 9, 8)
    assert torch.equal(fx.GraphModule(model, program)(x), model(x))


@pytest.mark.parametrize(
    ("image_size", "channels_last", "curvature"), [(8, False, "batch"), (11, True, "auto")]
)
def test_a_compiled_learner_scores_as_an_uncompiled_one(
    monkeypatch: pytest.MonkeyPatch, image_size: int, channels_last: bool, curvature: str
) -> None:
    monkeypatch.setattr("morphir.runtime.learning.lowering.prefers_channels_last", lambda *_: channels_last)
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    images = torch.randn(6, 3, image_size, image_size, dtype=torch.float64)
    images[:, :, :4] = 0  # background: equal values in whole windows
    graph = trace(model, images)
    found: list[list[float]] = []
    for compiled in (False, True):
        learner = Learner(
            graph,
            functional.cross_entropy,
            learn_curvature=curvature,
            score_curvature=curvature,
            compile=compiled,
            init_scale=0.5,
        )
        for _ in range(2):
            learner.step(images, torch.arange(6) % 4)
        found.append([score.delta_loss for score in learner.scores()])
    assert found[0] == pytest.approx(found[1], rel=1e-9, abs=1e-13)
