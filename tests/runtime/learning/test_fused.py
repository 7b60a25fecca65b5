"""Compiled kernels against the interpreter of conftest, and against the learner that compiles nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import morphir
from morphir.runtime.learning import kernels
from morphir.runtime.learning.kernels import Kernel

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a compiler"
)
CLASSES = 10


class _Block(nn.Module):
    """An inverted residual block with squeeze and excite: kernels, a convolution, kernels, two edges."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.SiLU()
        )
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.project = nn.Conv2d(8, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.depthwise(self.expand(x))
        gate = self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(h, 1))))
        return x + self.project(h * torch.sigmoid(gate))


class _Network(nn.Module):
    """ReLU alone, pooling, a gate, a concatenation, a parameter in a region, sizes read off tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = _Block()
        self.left, self.right = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.slope = nn.PReLU(8)
        self.conv = nn.Conv2d(8, 5, 3)
        self.hidden = nn.Linear(5 * 9, 7)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(functional.relu(self.stem(x)))
        x = functional.max_pool2d(self.slope(torch.cat((self.left(x), self.right(x)), 1)), 2)
        x = functional.gelu(functional.max_pool2d(self.conv(x), 2))
        x = x.reshape(x.size(0), -1)
        return self.head(functional.hardswish(self.hidden(x)))


def _model() -> nn.Module:
    torch.manual_seed(0)
    return _Network().double()


def _batch(samples: int, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, 3, side, side, dtype=torch.float64), torch.randint(0, CLASSES, (samples,))


def _pair(**options: Any) -> tuple[morphir.Graph, list[morphir.Learner]]:
    graph = morphir.trace(_model(), _batch(2)[0])
    loss = nn.CrossEntropyLoss(reduction="none")
    return graph, [morphir.Learner(graph, loss, compile=compile, **options) for compile in (False, True)]


def _assert_same(plain: morphir.Learner, compiled: morphir.Learner) -> None:
    first, second = plain.state_dict(), compiled.state_dict()
    assert first.keys() == second.keys()
    tensors = [key for key, value in first.items() if isinstance(value, torch.Tensor)]
    assert any(key.startswith("adam/exp_avg/") for key in tensors)
    for key in tensors:
        one, other = first[key], second[key]
        assert isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        scale = float(one.double().abs().max())
        assert float((one.double() - other.double()).abs().max()) <= 1e-9 * max(scale, 1e-12), key


@needs_compiler
def test_q_is_the_derivative_of_the_summed_loss(check_scores: Callable[..., Any]) -> None:
    checked = check_scores(_model(), _batch(2)[0], compile=True)
    assert {"stem", "block.expand.0", "block.squeeze", "left", "right", "conv", "hidden"} == set(
        checked.spaces
    )
    assert checked.visible >= 15


@needs_compiler
@pytest.mark.parametrize("curvature", ["batch", "mixed"])
def test_learns_and_scores_what_an_uncompiled_learner_does(curvature: str) -> None:
    _, (plain, compiled) = _pair(learn_curvature=curvature, score_curvature="fisher", init_scale=1.0)
    for samples in (4, 4, 3):
        batch = _batch(samples)
        for learner in (plain, compiled):
            learner.step(*batch)
    _assert_same(plain, compiled)


@needs_compiler
def test_another_memory_format_and_a_single_sample() -> None:
    _, (plain, compiled) = _pair(learn_curvature="batch", score_curvature="batch")
    images, labels = _batch(3)
    for batch in [(images.to(memory_format=torch.channels_last), labels), (images[:1], labels[:1])]:
        for learner in (plain, compiled):
            learner.step(*batch)
    _assert_same(plain, compiled)


@needs_compiler
def test_a_mean_loss_and_edges_that_the_loss_does_not_reach() -> None:
    graph = morphir.trace(_model(), _batch(2)[0])

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (
            functional.cross_entropy(outputs, targets) * 0
            + graph.stem.weight.sum() * 0
            + outputs.square().mean()
        )

    learners = [
        morphir.Learner(graph, loss, learn_curvature="batch", score_curvature="batch", compile=compile)
        for compile in (False, True)
    ]
    batch = _batch(4)
    for learner in learners:
        learner.step(*batch)
    _assert_same(*learners)


@needs_compiler
def test_a_kernel_is_compiled_anew_where_extents_change_what_it_computes() -> None:
    def broadcast(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ((x * y).sum(1),)

    kernel = Kernel(broadcast)
    shapes = [((3, 4), (3, 4)), ((5, 6), (5, 6)), ((5, 6), (1, 6)), ((2, 1), (2, 1)), ((7, 3), (1, 3))]
    calls = []
    for first, second in shapes:
        x, y = torch.randn(first), torch.randn(second)
        calls.append(kernel.serving([x, y]))
        assert torch.allclose(calls[-1](x, y)[0], broadcast(x, y)[0], atol=1e-6)
    assert calls[0] is calls[1], "other extents alone need no other kernel"
    assert calls[2] is calls[4] and len(set(map(id, calls))) == 3


@needs_compiler
def test_regions_that_read_the_same_share_their_kernels() -> None:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 5), (5, 7), (7, 9)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.Softsign()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 2))
    graph = morphir.trace(model, torch.zeros(2, 3, 8, 8))
    before = len(kernels._SHARED)
    learner = morphir.Learner(
        graph, nn.CrossEntropyLoss(), learn_curvature="batch", score_curvature="batch", compile=True
    )
    learner.step(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))
    assert len(kernels._SHARED) == before + 2, (
        "one for the first two layers, one for the last, which is pooled"
    )


@needs_compiler
def test_a_growth_run_does_the_same(tmp_path: Path) -> None:
    batches = [_batch(8) for _ in range(4)]
    grown = {}
    for compile in (False, True):
        graph = morphir.trace(_model(), batches[0][0])
        config = morphir.GrowthConfig.preset("demo", phases=1, train_epochs=1, final="none", compile=compile)
        morphir.grow(graph, batches, nn.CrossEntropyLoss(), config=config, out=tmp_path / str(compile))
        grown[compile] = graph
    assert grown[True].history and str(grown[True].history) == str(grown[False].history)


def test_a_kernel_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any, **__: Any) -> Callable[..., list[torch.Tensor]]:
        return lambda x: [x * 1.001]

    monkeypatch.setattr(kernels, "standalone_compile", wrong)
    with pytest.raises(morphir.MorphirError, match="computes something else"):
        Kernel(lambda x: (x * 1.0,)).serving([torch.randn(5, 5)])


def test_without_a_compiler_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise kernels.InvalidCxxCompiler

    monkeypatch.setattr(kernels, "standalone_compile", fail)
    monkeypatch.setattr(kernels, "_SHARED", {})
    graph, (_, compiled) = _pair()
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    with pytest.raises(morphir.MorphirError, match="cannot be compiled.*\n.*leave compile off"):
        compiled.step(*_batch(2))
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())
    assert graph.training and all(parameter.requires_grad for parameter in graph.parameters())
