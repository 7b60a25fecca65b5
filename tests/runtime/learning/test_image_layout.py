"""Images channels last on a CPU: what the kernels see, when not, and that no estimate depends on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from morphir import Learner, MorphirError, trace
from morphir.runtime.learning.image_layout import run_channels_last


class _Network(nn.Module):
    """A network whose head is given, behind a convolution that keeps the image's size."""

    def __init__(self, head: Callable[[torch.Tensor], torch.Tensor], channels: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.linear = nn.Linear(5, 4)
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.second(functional.relu(self.norm(self.first(x)))))
        return self.linear(self.head(x))


def _pooled(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


def _viewed(x: torch.Tensor) -> torch.Tensor:
    return x.view(x.size(0), -1).unflatten(1, (5, 48)).mean(2)


def _strided(x: torch.Tensor) -> torch.Tensor:
    return torch.as_strided(x, (x.size(0), 5), (5 * 48, 48)) + x.mean((2, 3))


def _overloaded(x: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.as_strided.default(x, (x.size(0), 5), (5 * 48, 48)) + x.mean((2, 3))


def _asked(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3)) * x.stride(1)


def _model(head: Callable[[torch.Tensor], torch.Tensor], channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return _Network(head, channels).double()


def _images(channels: int = 3) -> torch.Tensor:
    return torch.randn(4, channels, 6, 8, dtype=torch.float64)


def _strides_met(learner: Learner, images: torch.Tensor) -> list[tuple[int, ...]]:
    """Returns the strides of what the second convolution reads in one step."""
    met: list[tuple[int, ...]] = []
    convolve = functional.conv2d

    def watched(x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if x.shape[1] == 6:
            met.append(x.stride())
        return convolve(x, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "conv2d", watched)
        learner.step(images, torch.arange(len(images)) % 4)
    assert met
    return met


@pytest.mark.parametrize("channels", [1, 3])
def test_kernels_see_channels_last(channels: int) -> None:
    images = _images(channels)
    learner = Learner(trace(_model(_pooled, channels), images), functional.cross_entropy)
    assert set(_strides_met(learner, images)) == {(6 * 48, 1, 6 * 8, 6)}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("compile", [False, True])
def test_no_estimate_depends_on_it(monkeypatch: pytest.MonkeyPatch, channels: int, *, compile: bool) -> None:
    images, model = _images(channels), _model(_pooled, channels)
    found: list[list[float]] = []
    for allowed in (True, False):
        if not allowed:
            monkeypatch.setattr("morphir.runtime.learning.lowering.prefers_channels_last", lambda *_: False)
        learner = Learner(trace(model, images), functional.cross_entropy, compile=compile, init_scale=0.5)
        assert learner.lowered.channels_last is allowed
        for _ in range(2):
            learner.step(images, torch.arange(4))
        found.append([score.delta_loss for score in learner.scores()])
    assert found[0] == pytest.approx(found[1], rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("head", [_viewed, _strided, _overloaded, _asked])
def test_programs_that_depend_on_the_format_keep_their_own(
    check_scores: Callable[..., Any], head: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    images = _images()
    learner = Learner(trace(_model(head), images), functional.cross_entropy)
    assert not learner.lowered.channels_last
    assert set(_strides_met(learner, images)) == {(6 * 48, 48, 8, 1)}
    assert "first" in check_scores(_model(head), images).spaces


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.Conv1d(4, 2, 3)), torch.randn(2, 3, 9)),
        (nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3, 6, 8)),
        (nn.Sequential(nn.Conv3d(3, 4, 3), nn.Conv3d(4, 2, 1)), torch.randn(2, 3, 5, 5, 5)),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).to("meta"),
            torch.randn(2, 3, 5, 5).to("meta"),
        ),
    ],
    ids=["sequence", "no convolution", "volume", "meta"],
)
def test_what_is_left_as_it_is(model: nn.Module, inputs: torch.Tensor) -> None:
    learner = Learner(trace(model, inputs), lambda outputs, targets: outputs.mean() + targets)
    assert not learner.lowered.channels_last


def test_what_fits_is_not_copied_and_values_are_those_before() -> None:
    images = torch.randn(2, 3, 4, 5)
    met: list[Any] = []

    def program(*values: Any) -> None:
        met.extend(values)

    run_channels_last(program, [images, images[:, :1], {"mask": images[0], "n": 3}])
    converted, lone, other = met
    assert torch.equal(converted, images) and converted.stride() == (60, 1, 15, 3)
    assert torch.equal(lone, images[:, :1]) and lone.stride() == (20, 1, 5, 1)
    assert torch.equal(other["mask"], images[0]) and other["n"] == 3
    run_channels_last(program, [converted])
    assert met[-1] is converted


class _Flat(nn.Module):
    """Its view takes both formats of 1 x 1 values, and one of larger ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv1d(1, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x))
        return self.second(h.view(h.size(0), 1, -1)).mean(2)


def test_a_size_at_which_the_program_refuses() -> None:
    torch.manual_seed(0)
    model, labels = _Flat().double(), torch.arange(4) % 2
    learner = Learner(trace(model, torch.randn(4, 3, 3, 3).double()), functional.cross_entropy)
    assert learner.lowered.channels_last
    images = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    loss = learner.step(images, labels).loss
    assert torch.allclose(loss, functional.cross_entropy(model(images), labels))
    with pytest.raises(MorphirError, match="4"):
        learner.step(torch.randn(4, 4, 5, 5, dtype=torch.float64), labels)
