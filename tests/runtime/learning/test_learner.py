"""What a user of the learner relies on: nothing of theirs changes, scores mean what they say, runs
continue."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from morphir.analysis.cost import delta_cost
from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.learning.learner import Learner
from passes.transform import transform

CLASSES = 3


def _model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.Dropout(0.5),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, CLASSES),
    )


def _graph(dtype: torch.dtype = torch.float64) -> Graph:
    return trace(_model().to(dtype), torch.zeros(2, 3, 8, 8, dtype=dtype))


def _batch(samples: int = 6, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, 3, 8, 8, dtype=dtype), torch.randint(0, CLASSES, (samples,))


def _per_sample(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def _deltas(learner: Learner) -> torch.Tensor:
    return torch.tensor([score.delta_loss for score in learner.scores()], dtype=torch.float64)


@pytest.mark.parametrize("fails", [False, True])
def test_the_users_graph_is_untouched(fails: bool) -> None:
    graph = _graph()
    graph.train()
    graph.get_submodule("1").eval()
    graph.get_parameter("4.bias").requires_grad_(False)
    for parameter in graph.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    modes = [module.training for module in graph.modules()]
    flags = [parameter.requires_grad for parameter in graph.parameters()]
    state = {key: value.clone() for key, value in graph.state_dict().items()}
    code, images_and_labels = graph.code, _batch()

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if fails:
            raise ZeroDivisionError
        return functional.cross_entropy(outputs, targets)

    learner = Learner(graph, loss)
    if fails:
        with pytest.raises(MorphirError, match="the loss fails on this batch .*ZeroDivisionError"):
            learner.step(*images_and_labels)
    else:
        learner.step(*images_and_labels)
    assert [module.training for module in graph.modules()] == modes
    assert [parameter.requires_grad for parameter in graph.parameters()] == flags
    assert all(bool((parameter.grad == 3).all()) for parameter in graph.parameters())
    assert graph.code == code
    assert all(torch.equal(value, state[key]) for key, value in graph.state_dict().items())


def test_step_returns_the_evaluation_mode_loss_and_outputs() -> None:
    graph, (images, labels) = _graph(), _batch()
    result = Learner(graph.train(), functional.cross_entropy).step(images, labels)
    expected = graph.eval()(images)
    torch.testing.assert_close(result.outputs, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        result.loss, functional.cross_entropy(expected, labels).detach(), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("curvature", ["batch", "fisher", "mixed", "empirical-fisher"])
def test_mean_and_per_sample_losses_agree(curvature: str) -> None:
    graph, batch, found = _graph(), _batch(), []
    for loss in (functional.cross_entropy, _per_sample):
        learner = Learner(graph, loss, learn_curvature=curvature, score_curvature=curvature, init_scale=0.5)
        for _ in range(3):
            learner.step(*batch)
        found.append(_deltas(learner))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_scores_average_the_batches_with_the_bias_corrected() -> None:
    graph, batches, ema = _graph(), [_batch() for _ in range(4)], 0.3
    averaged = Learner(graph, _per_sample, score_curvature="batch", lr=0.0, ema=ema)
    alone = []
    for batch in batches:
        averaged.step(*batch)
        single = Learner(graph, _per_sample, score_curvature="batch", lr=0.0, ema=ema)
        single.step(*batch)
        alone.append(_deltas(single))
    weights = torch.tensor([ema * (1 - ema) ** age for age in (3, 2, 1, 0)], dtype=torch.float64)
    expected = (torch.stack(alone) * weights[:, None]).sum(0) / weights.sum()
    torch.testing.assert_close(_deltas(averaged), expected, rtol=1e-12, atol=1e-15)


def test_learned_splits_decrease_the_loss_when_applied() -> None:
    graph, (images, labels) = _graph().eval(), _batch(32)
    learner = Learner(graph, functional.cross_entropy, init_scale=0.3)
    for _ in range(60):
        learner.step(images, labels)
    best = min((s for s in learner.scores() if isinstance(s.morphism, Split)), key=lambda s: s.delta_loss)
    before = functional.cross_entropy(graph(images), labels).item()
    parameters = sum(parameter.numel() for parameter in graph.parameters())
    transform(graph, [best.morphism])
    after = functional.cross_entropy(graph.eval()(images), labels).item()
    assert best.delta_loss < 0
    assert after - before < 0.3 * best.delta_loss
    assert sum(parameter.numel() for parameter in graph.parameters()) - parameters == best.delta_parameters


def test_scores_name_every_legal_morphism_with_its_cost() -> None:
    graph = _graph()
    learner = Learner(graph, functional.cross_entropy)
    learner.step(*_batch())
    scores = learner.scores()
    kinds = [(type(s.morphism), s.morphism.space, s.morphism.index) for s in scores]
    expected = [
        (kind, name, index)
        for name, space in graph.spaces.items()
        for kind in (Split, Prune)
        for index in range(space.width)
        if space.verdict(index).kind == "exact"
    ]
    assert kinds == expected and len(expected) == 18
    for score in scores:
        kind = "split" if isinstance(score.morphism, Split) else "prune"
        cost = delta_cost(graph, kind, score.morphism.space, score.morphism.index)
        assert (score.delta_parameters, score.delta_macs) == (cost.parameters, cost.macs)


@pytest.mark.parametrize("curvature", ["batch", "mixed", "auto"])
def test_resuming_is_bit_identical(curvature: str) -> None:
    graph, batches = _graph(torch.float32), [_batch(dtype=torch.float32) for _ in range(5)]
    options: dict[str, Any] = {"learn_curvature": curvature, "score_curvature": curvature}
    whole = Learner(graph, functional.cross_entropy, **options)
    for batch in batches[:2]:
        whole.step(*batch)
    saved = whole.state_dict()
    assert all(isinstance(value, (torch.Tensor, int, float)) for value in saved.values())
    resumed = Learner(graph, functional.cross_entropy, seed=7, **options)
    resumed.load_state_dict(saved)
    for batch in batches[2:]:
        whole.step(*batch)
        resumed.step(*batch)
    assert torch.equal(_deltas(whole), _deltas(resumed))
    ends = whole.state_dict(), resumed.state_dict()
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[0].items():
        other = ends[1][key]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def _wide(dtype: torch.dtype) -> tuple[Graph, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16 * 64, CLASSES),
    )
    batches = [_batch(8, torch.float64) for _ in range(4)]
    graph = trace(model.to(dtype), torch.zeros(2, 3, 8, 8, dtype=dtype))
    return graph, [(images.to(dtype), labels) for images, labels in batches]


FORMATS = torch.contiguous_format, torch.channels_last


@pytest.mark.parametrize("optimizer", ["adam", "adam-mini"])
@pytest.mark.parametrize(("own", "gradients_own"), [FORMATS, FORMATS[::-1], FORMATS[:1] * 2])
def test_theta_moves_as_plain_adam_moves_it_whatever_the_gradients_strides(
    own: torch.memory_format, gradients_own: torch.memory_format, optimizer: str
) -> None:
    """Against Adam's update written out in float64; a convolution chooses its gradient's format."""
    graph, batches = _wide(torch.float32)
    graph.to(memory_format=own)  # pyright: ignore[reportCallIssue]
    learner = Learner(graph, functional.cross_entropy, optimizer=optimizer, lr=1e-2, absolute_lr=True)
    theta = learner.thetas["2"]["2.weight"]
    gradients: list[torch.Tensor] = []
    set_gradient = type(theta).set_gradient
    expected = theta.value.detach().double().contiguous()
    first, second = torch.zeros_like(expected), torch.zeros_like(expected)

    def noted(self: Any, gradient: torch.Tensor) -> None:
        if self is theta:
            gradients.append(gradient.double().contiguous())
            gradient = gradient.clone(memory_format=gradients_own)
        set_gradient(self, gradient)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(theta), "set_gradient", noted)
        for batch in batches:
            learner.step(*batch)
    for step, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        square = gradient.square()
        square = square if optimizer == "adam" else square.mean((1, 2, 3), keepdim=True)
        second = 0.999 * second + 0.001 * square
        size = (second / (1 - 0.999**step)).sqrt() + 1e-8
        expected = expected - 1e-2 * first / (1 - 0.9**step) / size
    assert len(gradients) == len(batches)
    torch.testing.assert_close(theta.value.detach().double(), expected, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_is_relative_to_each_kernel_and_can_be_changed() -> None:
    """A first step is the rate itself, whatever the gradient's size: Adam's in each entry, Adam-mini's in the
    root mean square of each channel's kernel."""
    graph, (images, labels) = _graph(), _batch()
    for absolute, optimizer in itertools.product((False, True), ("adam", "adam-mini")):
        learner = Learner(graph, functional.cross_entropy, optimizer=optimizer, lr=0.5, absolute_lr=absolute)
        assert learner.lr == 0.5
        learner.lr = 0.1
        before = {key: own[f"{key}.weight"].value.detach().clone() for key, own in learner.thetas.items()}
        learner.step(images, labels)
        for key, theta in before.items():
            kernel = graph.get_parameter(f"{key}.weight").detach()
            moved = (learner.thetas[key][f"{key}.weight"].value.detach() - theta).abs()
            if optimizer == "adam-mini":
                moved = moved.square().flatten(1).mean(1).sqrt()
            rate = 0.1 * (1.0 if absolute else float(kernel.square().mean().sqrt()))
            assert float(moved.median()) == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(
    ("classifier", "learn", "score"), [(True, "mixed", "shrunk-fisher"), (False, "batch", "batch")]
)
def test_auto_samples_the_fisher_where_the_outputs_are_logits(
    classifier: bool, learn: str, score: str
) -> None:
    graph, (images, labels) = _graph(), _batch()
    targets = labels if classifier else functional.one_hot(labels, CLASSES).double()
    loss = functional.cross_entropy if classifier else functional.mse_loss
    found = []
    for names in (("auto", "auto"), (learn, score)):
        learner = Learner(graph, loss, learn_curvature=names[0], score_curvature=names[1], init_scale=0.5)
        for _ in range(3):
            learner.step(images, targets)
        found.append(_deltas(learner))
    assert torch.equal(found[0], found[1])


def test_a_state_without_strides_continues_a_channels_last_learner() -> None:
    """Files hold every tensor in row-major order."""
    graph, batches = _wide(torch.float32)
    graph.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    whole = Learner(graph, functional.cross_entropy)
    whole.step(*batches[0])
    saved = {k: v.contiguous() if isinstance(v, torch.Tensor) else v for k, v in whole.state_dict().items()}
    resumed = Learner(graph, functional.cross_entropy, seed=7)
    resumed.load_state_dict(saved)
    for batch in batches[1:]:
        whole.step(*batch)
        resumed.step(*batch)
    for key, value in whole.state_dict().items():
        other = resumed.state_dict()[key]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_state_of_another_graph_is_refused_and_changes_nothing() -> None:
    learner = Learner(_graph(), functional.cross_entropy)
    other = trace(nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 2, 3)), torch.zeros(2, 3, 8, 8))
    before = learner.state_dict()
    with pytest.raises(MorphirError, match="another graph"):
        learner.load_state_dict(Learner(other, functional.cross_entropy).state_dict())
    for key, value in before.items():
        now = learner.state_dict()[key]
        assert torch.equal(value, now) if isinstance(value, torch.Tensor) else value == now


def _assert_same_state(one: Learner, other: Learner) -> None:
    state = other.state_dict()
    assert state.keys() == one.state_dict().keys()
    for key, value in one.state_dict().items():
        assert torch.equal(value, state[key]) if isinstance(value, torch.Tensor) else value == state[key]


@pytest.mark.parametrize("optimizer", ["adam", "adam-mini"])
def test_a_first_state_starts_a_used_learner_again(optimizer: str) -> None:
    graph, batches = _wide(torch.float64)
    fresh, used = (Learner(graph, functional.cross_entropy, optimizer=optimizer) for _ in range(2))
    first = fresh.state_dict()
    for batch in batches[1:]:
        used.step(*batch)
    used.load_state_dict(first)
    for learner in (fresh, used):
        learner.step(*batches[0])
    _assert_same_state(fresh, used)


@pytest.mark.parametrize(
    "missing", ["steps", "weight", "bad_step", "first_order", "calibration", "step", "exp_avg", "exp_avg_sq"]
)
@pytest.mark.parametrize("optimizer", ["adam", "adam-mini"])
def test_an_incomplete_state_is_refused_and_changes_nothing(optimizer: str, missing: str) -> None:
    graph, batches = _wide(torch.float64)
    learner, other, same = (
        Learner(graph, functional.cross_entropy, optimizer=optimizer, seed=seed) for seed in (0, 1, 0)
    )
    other.step(*batches[0])
    state = other.state_dict()
    del state[missing if missing in state else f"adam/{missing}/0/0.weight"]
    with pytest.raises(MorphirError, match=missing):
        learner.load_state_dict(state)
    _assert_same_state(learner, same)


@pytest.mark.parametrize("optimizer", ["adam", "adam-mini"])
def test_a_step_that_failed_leaves_no_gradient_behind(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, batches = _wide(torch.float64)
    failing, whole = (Learner(graph, functional.cross_entropy, optimizer=optimizer) for _ in range(2))
    work, calls = failing._work, 0

    def out_of_memory(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError
        return work(*args)

    monkeypatch.setattr(failing, "_work", out_of_memory)
    generator = whole.state_dict()["generator"]
    with pytest.raises(MemoryError):
        failing.step(*batches[0])
    failing.load_state_dict(failing.state_dict() | {"generator": generator})
    for learner in (failing, whole):
        learner.step(*batches[1])
    _assert_same_state(failing, whole)


def test_a_kernel_of_zeros_is_learned() -> None:
    """As the last layer of a residual branch often starts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Softplus(), nn.Linear(9, 3))
    nn.init.zeros_(model[0].weight)
    learner = Learner(trace(model, torch.zeros(2, 6)), functional.cross_entropy)
    theta = learner.thetas["0"]["0.weight"]
    assert theta.unit == pytest.approx(6**-0.5)
    before = theta.value.detach().clone()
    learner.step(torch.randn(4, 6), torch.arange(4) % 3)
    assert (theta.value.detach() != before).all()


@pytest.mark.parametrize("curvature", ["batch", "mixed", "auto"])
def test_a_step_after_the_first_reads_nothing_back(
    curvature: str, no_host_reads: AbstractContextManager[Any]
) -> None:
    graph = _graph()
    learner = Learner(graph, functional.cross_entropy, learn_curvature=curvature, score_curvature=curvature)
    batch = _batch()
    learner.step(*batch)  # sees what the loss is
    with no_host_reads:
        learner.step(*batch)
        learner.step(*batch)


def test_every_tensor_of_a_step_is_on_the_graphs_device() -> None:
    """The meta device stands for any but the CPU: it refuses mixed devices, and has no values to read."""
    graph = _graph(torch.float32).to("meta")
    learner = Learner(graph, functional.cross_entropy)
    images, labels = _batch(dtype=torch.float32)
    result = learner.step(images.to("meta"), labels.to("meta"))
    state = learner.state_dict()
    assert result.loss.device.type == "meta"
    assert {
        value.device.type for value in state.values() if isinstance(value, torch.Tensor) and value.dim()
    } == {"meta"}


class _Scripted(nn.Module):
    """A scripted dropout between the convolution and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, CLASSES, 1)
        self.dropout = torch.jit.script(nn.Sequential(nn.Dropout(0.5)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(torch.relu(self.conv(x)))).mean((2, 3))


@pytest.mark.parametrize("curvature", ["auto", "batch", "mixed"])
def test_scripted_modules_are_evaluated_and_nothing_may_be_learned(curvature: str) -> None:
    images, labels = _batch()
    model = _Scripted().double()
    graph = trace(model, images).train()
    learner = Learner(graph, _per_sample, learn_curvature=curvature, score_curvature=curvature)
    result = learner.step(images, labels)
    assert all(module.training for module in graph.modules())
    torch.testing.assert_close(result.outputs, model.eval()(images))
    torch.testing.assert_close(result.loss, _per_sample(model(images), labels).mean())
    assert learner.scores() == []


def test_autocast_and_channels_last(round_scores: Callable[..., dict[str, Any]]) -> None:
    found = round_scores(_graph(torch.float32).eval(), _batch(dtype=torch.float32))
    found["prune"].assert_close(roundings=1, rank=0.99, large=8)
    found["split"].assert_close(roundings=0.5, rank=0.9, large=6)


def test_a_loss_that_is_not_finite_is_named_by_its_step() -> None:
    learner = Learner(_graph(), functional.cross_entropy)
    images, labels = _batch()
    learner.step(images, labels)
    learner.step(images * float("nan"), labels)
    learner.step(images, labels)
    with pytest.raises(MorphirError, match="learning step 2 was not finite"):
        learner.scores()


def test_a_rewritten_or_moved_graph_needs_a_new_learner() -> None:
    graph, batch = _graph(), _batch()
    learner = Learner(graph, functional.cross_entropy)
    learner.step(*batch)
    transform(graph, [Prune("0", 1)])
    with pytest.raises(MorphirError, match="new Learner"):
        learner.step(*batch)
    with pytest.raises(MorphirError, match="new Learner"):
        learner.scores()
    Learner(graph, functional.cross_entropy).step(*batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learn_curvature": "hessian"}, "no curvature 'hessian'"),
        ({"spaces": ["nowhere"]}, "no channel space 'nowhere'"),
        ({"spaces": "0"}, "spaces is '0'\n.*a list of names of spaces"),
        ({"spaces": 3}, "spaces is 3"),
        ({"lr": -1}, "lr is -1\n.*0 or above"),
        ({"lr": float("nan")}, "lr is nan\n.*a finite number"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"ema": 5}, "ema is 5\n.*above 0, at most 1"),
        ({"ema": 0.0}, "ema is 0.0"),
        ({"init_scale": float("inf")}, "init_scale is inf"),
        ({"seed": "a"}, "seed is 'a'\n.*a whole number"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MorphirError, match=message):
        Learner(_graph(), functional.cross_entropy, **options)


def test_losses_that_the_curvature_cannot_use() -> None:
    images, labels = _batch()
    with pytest.raises(MorphirError, match='reduction="none"'):
        Learner(_graph(), functional.cross_entropy, learn_curvature="sample").step(images, labels)
    regression = Learner(
        _graph(), lambda outputs, targets: (outputs - targets).square().mean(), score_curvature="fisher"
    )
    with pytest.raises(MorphirError, match="one integer label a sample"):
        regression.step(images, torch.randn(6, CLASSES, dtype=torch.float64))
    per_pixel = Learner(_graph(), lambda outputs, targets: outputs)
    with pytest.raises(MorphirError, match="one loss a sample"):
        per_pixel.step(images, labels)
    with pytest.raises(MorphirError, match="no tensor but float"):
        Learner(_graph(), lambda outputs, targets: 1.0).step(images, labels)
    with pytest.raises(MorphirError, match="there is no sample in this batch"):
        Learner(_graph(), functional.cross_entropy).step(images[:0], labels[:0])


@pytest.mark.parametrize(
    ("shape", "dtype", "targets", "message"),
    [
        (
            (2, 1, 8, 8),
            torch.float64,
            torch.tensor([0, 1]),
            r"model fails on this batch \(\(2, 1, 8, 8\) float64",
        ),
        (
            (2, 3, 9, 5),
            torch.float64,
            torch.tensor([0, 1]),
            r"model fails on this batch \(\(2, 3, 9, 5\) float64",
        ),
        (
            (2, 3, 8, 8),
            torch.float32,
            torch.tensor([0, 1]),
            r"model fails on this batch \(\(2, 3, 8, 8\) float32",
        ),
        ((2, 3, 8, 8), torch.float64, torch.tensor([0.0, 1.0]), r"loss fails on .*targets \(2,\) float32"),
        ((2, 3, 8, 8), torch.float64, torch.tensor([0, 1, 2]), r"loss fails on .*targets \(3,\) int64"),
        (
            (2, 3, 8, 8),
            torch.float64,
            torch.tensor([0, 3]),
            "a target is not one of the model's outputs in this",
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_one_clear_error(
    shape: tuple[int, ...], dtype: torch.dtype, targets: torch.Tensor, message: str
) -> None:
    learner = Learner(_graph(), functional.cross_entropy)
    with pytest.raises(MorphirError, match=message) as caught:
        learner.step(torch.zeros(shape, dtype=dtype), targets)
    assert caught.value.hint and caught.value.__cause__ is not None
    learner.step(*_batch())  # what failed left nothing behind


def test_a_loss_that_cannot_be_called_is_refused_at_once() -> None:
    with pytest.raises(MorphirError, match="the loss is a NoneType, not a function"):
        Learner(_graph(), None)  # type: ignore[arg-type]


def test_a_model_is_no_graph() -> None:
    with pytest.raises(MorphirError, match=r"expected a morphir\.Graph, got Linear"):
        Learner(torch.nn.Linear(2, 2), functional.cross_entropy)  # type: ignore[arg-type]


def test_scores_before_the_first_step_are_refused() -> None:
    with pytest.raises(MorphirError, match="no step yet"):
        Learner(_graph(), functional.cross_entropy).scores()


def test_only_the_named_spaces_are_worked_on() -> None:
    learner = Learner(_graph(), functional.cross_entropy, spaces=["4"])
    learner.step(*_batch())
    assert {score.morphism.space for score in learner.scores()} == {"4"}


def test_a_detached_loss_is_refused() -> None:
    learner = Learner(_graph(), lambda outputs, targets: functional.cross_entropy(outputs.detach(), targets))
    with pytest.raises(MorphirError, match="does not depend on the model's outputs"):
        learner.step(*_batch())


def test_the_state_of_another_optimizer_of_theta_is_refused() -> None:
    graph, (images, labels) = _graph(), _batch()
    learners = [Learner(graph, functional.cross_entropy, optimizer=name) for name in ("adam", "adam-mini")]
    for learner in learners:
        learner.step(images, labels)
    states = [learner.state_dict() for learner in learners]
    for learner, own, other in zip(learners, states, states[::-1], strict=True):
        with pytest.raises(MorphirError, match="adam/exp_avg_sq"):
            learner.load_state_dict(other)
        after = learner.state_dict()
        assert all(
            torch.equal(torch.as_tensor(value), torch.as_tensor(after[key])) for key, value in own.items()
        )


def test_an_unknown_optimizer_of_theta_is_named() -> None:
    with pytest.raises(MorphirError, match="'sgd'"):
        Learner(_graph(), functional.cross_entropy, optimizer="sgd")


def test_a_learning_rate_out_of_range_is_refused_later_too() -> None:
    learner = Learner(_graph(), functional.cross_entropy, lr=0.5, seed=np.int64(3))
    with pytest.raises(MorphirError, match="lr is nan"):
        learner.lr = float("nan")
    assert learner.lr == 0.5
