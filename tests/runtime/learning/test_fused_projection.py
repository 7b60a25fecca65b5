"""Compiled kernels against the interpreter of conftest, and against the learner that compiles nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import morphir
from morphir.runtime.learning import kernels
from morphir.runtime.learning.compilation import Compiled

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a compiler"
)
pytestmark = pytest.mark.xdist_group("kernels")
CLASSES = 10
_COMPILER = "torch._inductor.compile_fx.compile_fx_inner"


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
@pytest.mark.parametrize(
    ("curvature", "batches"),
    # As many samples as channels: a kernel takes the extents for the same, until there are others.
    [("batch", (4, 4, 3)), ("mixed", (9, 9, 11))],
)
def test_learns_and_scores_what_an_uncompiled_learner_does(curvature: str, batches: Sequence[int]) -> None:
    _, (plain, compiled) = _pair(learn_curvature=curvature, score_curvature="fisher", init_scale=1.0)
    for samples in batches:
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

    compiled = Compiled(broadcast)
    shapes = [((3, 4), (3, 4)), ((5, 6), (5, 6)), ((5, 6), (1, 6)), ((2, 1), (2, 1)), ((7, 3), (1, 3))]
    calls = []
    for first, second in shapes:
        x, y = torch.randn(first), torch.randn(second)
        calls.append(compiled.serving([x, y], broadcast))
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


def _compiler_that_yields(call: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., SimpleNamespace]:
    return lambda *_, **__: SimpleNamespace(current_callable=lambda given: [call(*given)])


def _same(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (x * 1.0,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [lambda x: x * 1.2, torch.zeros_like, lambda x: x / 0, torch.neg])
def test_a_kernel_that_computes_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, wrong: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    monkeypatch.setattr(_COMPILER, _compiler_that_yields(wrong))
    with pytest.raises(morphir.MorphirError, match="computes something else"):
        Compiled(_same).serving([torch.randn(5, 5, dtype=dtype)], _same)


def test_what_is_not_finite_uncompiled_may_be_so_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_COMPILER, _compiler_that_yields(lambda x: x * 1.0))
    values = torch.tensor([1.0, float("nan"), float("inf")])
    (found,) = Compiled(_same).serving([values], _same)(values)
    assert torch.equal(found.isfinite(), torch.tensor([True, False, False]))


class _Region(nn.Module):
    """One space whose region is a function of the first convolution's output."""

    def __init__(self, region: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv1d(6, CLASSES, 1)
        self.region = region

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.region(torch.tanh(self.conv(x)).flatten(2))).mean(2)


def _largest(x: torch.Tensor) -> torch.Tensor:
    return x.max(2, keepdim=True)[0]


def _masked(x: torch.Tensor) -> torch.Tensor:
    return x * ((x > 0).cumsum(2) > 3)


def _restacked(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([part * 2 for part in x.unbind(2)], 2)


def _stacked(x: torch.Tensor) -> torch.Tensor:
    return torch.stack(x.chunk(2, 2), 3).flatten(2)


def _learned(model: nn.Module, steps: int = 2, curvature: str = "auto") -> list[morphir.Learner]:
    torch.manual_seed(0)
    model = model.double()
    graph = morphir.trace(model, _batch(2, 4)[0])
    loss = nn.CrossEntropyLoss(reduction="none")
    options: Any = {"learn_curvature": curvature, "score_curvature": curvature}
    learners = [morphir.Learner(graph, loss, compile=compile, **options) for compile in (False, True)]
    for _ in range(steps):
        batch = _batch(3, 4)
        for learner in learners:
            learner.step(*batch)
    return learners


@needs_compiler
@pytest.mark.parametrize("region", [_largest, _masked, _restacked, _stacked])
def test_operators_that_yield_several_tensors_or_none_to_differentiate(
    region: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    learners = _learned(_Region(region))
    assert any(float(value.abs().max()) > 0 for value in _gradients(learners[0]))
    _assert_same(*learners)


@needs_compiler
def test_a_segment_that_does_nothing() -> None:
    depthwise = [nn.Conv2d(6, 6, 3, padding=1, groups=6) for _ in range(2)]
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), depthwise[0], nn.Dropout(), depthwise[1])
    model = nn.Sequential(*layers, nn.Conv2d(6, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    _assert_same(*_learned(model, curvature="batch"))


class _Swapped(nn.Module):
    """Two producers of one space with their channels in another order; maybe a convolution behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.head = nn.Conv2d(6, CLASSES, 1)
        self.after = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        other = self.other(x)
        h = functional.relu(self.one(x) + torch.cat((other[:, 3:], other[:, :3]), 1))
        return self.head(functional.relu(self.depthwise(h)) if self.after else h).mean((2, 3))


@needs_compiler
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("curvature", ["batch", "mixed"])
def test_channels_in_another_order_than_their_groups(curvature: str, after: bool) -> None:
    model = _Swapped()
    model.after = after
    learners = _learned(model, curvature=curvature)
    assert any(float(value.abs().max()) > 0 for value in _gradients(learners[0]))
    _assert_same(*learners)


def _gradients(learner: morphir.Learner) -> list[torch.Tensor]:
    state = learner.state_dict().items()
    return [
        value for key, value in state if key.startswith("adam/exp_avg/") and isinstance(value, torch.Tensor)
    ]


@needs_compiler
def test_modules_that_only_look_the_same_share_no_kernel() -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Dropout(0.5), nn.Conv2d(4, CLASSES, 1), nn.Flatten()
        )

    _assert_same(*_learned(nn.Sequential(model(), nn.Linear(CLASSES * 16, CLASSES)), curvature="batch"))
    narrower = nn.Sequential(model(), nn.Linear(CLASSES * 16, CLASSES))
    narrower[0][1].max_val = 0.2
    _assert_same(*_learned(narrower, curvature="batch"))
    hooked = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.Sigmoid(),
        nn.Conv2d(4, CLASSES, 1),
        nn.Flatten(),
        nn.Linear(CLASSES * 16, CLASSES),
    )
    _assert_same(*_learned(hooked, curvature="batch"))
    hooked[1].register_forward_hook(lambda _, __, output: output * output)
    _assert_same(*_learned(hooked, curvature="batch"))


@needs_compiler
def test_a_graph_in_training_mode_leaves_the_kernels_of_another_alone() -> None:
    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.Conv2d(4, CLASSES, 1),
            nn.Flatten(),
            nn.Linear(CLASSES * 16, CLASSES),
        )

    first = _learned(model(), curvature="batch")
    first[0].graph.train()
    _assert_same(*_learned(model(), curvature="batch"))


@needs_compiler
def test_autocast_may_come_and_go(roundings: Callable[..., dict[tuple[str, int], float]]) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix = nn.Conv1d(3, 6, 1), nn.Conv1d(6, 6, 3, padding=1, groups=6)
            self.head = nn.Linear(6, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.table(x)
            return self.head((y.float() + torch.tanh(self.mix(torch.tanh(y)))).mean(2))

    torch.manual_seed(0)
    graph = morphir.trace(Mixed(), torch.randn(2, 3, 8))
    loss = nn.CrossEntropyLoss(reduction="none")
    still: dict[str, Any] = {"lr": 0.0, "ema": 1.0}  # each step's estimates alone, of the same theta
    learners = [
        morphir.Learner(
            graph, loss, learn_curvature="batch", score_curvature="batch", compile=compile, **still
        )
        for compile in (False, True)
    ]
    for enabled in (False, True, False):
        batch = torch.randn(4, 3, 8), torch.randint(0, CLASSES, (4,))
        for learner in learners:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                learner.step(*batch)
        plain, compiled = ({s.morphism: s.delta_loss for s in learner.scores()} for learner in learners)
        rounding = roundings(graph, batch, 2**-8 if enabled else 2**-23)
        assert plain.keys() == compiled.keys()
        for morphism, value in plain.items():
            assert abs(compiled[morphism] - value) <= 2 * rounding[morphism.space, morphism.index], morphism


@needs_compiler
def test_learners_in_threads() -> None:
    pairs = [_learned(_Region(nn.LeakyReLU(slope)), steps=0, curvature="batch") for slope in (0.1, 0.2)]
    batch = _batch(3, 4)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: pair[1].step(*batch), pairs))
    for plain, compiled in pairs:
        plain.step(*batch)
        _assert_same(plain, compiled)


def test_without_a_compiler_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no g++")

    monkeypatch.setattr(_COMPILER, fail)
    monkeypatch.setattr(kernels, "_SHARED", {})
    graph, (_, compiled) = _pair()
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    with pytest.raises(morphir.MorphirError, match="cannot be compiled.*\n.*leave compile off"):
        compiled.step(*_batch(2))
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())
    assert graph.training and all(parameter.requires_grad for parameter in graph.parameters())
