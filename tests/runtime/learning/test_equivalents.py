"""One network written in two ways is learned alike: by hooks or in forward, by a module or by hand.

The networks of each pair compute the same, and have the same parameters in the same order; the second one is
made of what the mathematics' tests cover. Losses, estimates and theta's gradients have to agree in float64.
"""

from __future__ import annotations

import copy
import shutil
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import morphir
from morphir.errors import MorphirError, MorphirWarning

CLASSES = 5
Region = Callable[[Any, torch.Tensor], torch.Tensor]

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a compiler"
)
compiled = pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])


def _activated(net: Any, h: torch.Tensor) -> torch.Tensor:
    return net.act(h)


class _Net(nn.Module):
    def __init__(
        self,
        region: Region = _activated,
        *,
        norm: nn.Module | None = None,
        act: nn.Module | None = None,
        conv: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = conv(3, 6, 3, padding=1)
        self.norm = norm or nn.Identity()
        self.act = act or nn.ReLU()
        self.next, self.head = nn.Conv2d(6, 5, 3, padding=1), nn.Linear(5, CLASSES)
        self.region = region
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.region(self, self.norm(self.conv(x)))
        return self.head(torch.relu(self.next(h)).mean((2, 3)))


def _per_sample(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def _batch(side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, side, side, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, CLASSES, (4,), generator=generator)


def _learned(
    model: nn.Module,
    batch: tuple[torch.Tensor, torch.Tensor],
    *,
    example: torch.Tensor | None = None,
    loss: Any = _per_sample,
    compile: bool = False,
    curvature: str = "batch",
) -> list[torch.Tensor]:
    """Returns the loss, the estimates, and the gradients of theta, with a theta as large as the kernels."""
    graph = morphir.trace(model, batch[0] if example is None else example)
    learner = morphir.Learner(
        graph,
        loss,
        learn_curvature=curvature,
        score_curvature=curvature,
        init_scale=1.0,
        compile=compile,
        optimizer="adam",
    )
    result = learner.step(*batch)
    state = learner.state_dict()
    moments = [torch.as_tensor(value) for key, value in state.items() if key.startswith("adam/exp_avg/")]
    assert moments and all(bool(moment.any()) for moment in moments)
    averages = [torch.as_tensor(state[name]) for name in ("first_order", "second_order")]
    return [result.loss, *averages, *moments]


def _assert_alike(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


class _TripleConv(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(input)


class _TripleReLU(nn.ReLU):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(input)


class _NegativePool(nn.MaxPool2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return -super().forward(input)


def _triple(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return 3 * output


def _negative(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return -output


def _hooked(net: nn.Module, path: str, hook: Any = _triple) -> nn.Module:
    net.get_submodule(path).register_forward_hook(hook)
    return net


def _with_forward(net: _Net) -> nn.Module:
    def forward(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return 3 * functional.conv2d(x, self.weight, self.bias, padding=1)

    net.conv.forward = types.MethodType(forward, net.conv)
    return net


def _pre_hooked(net: _Net) -> nn.Module:
    net.next.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3,))
    return net


def _depthwise(conv: type[nn.Conv2d]) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.ReLU(), conv(6, 6, 3, groups=6), nn.GELU())


def _statistics() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(6)
    norm.running_mean = torch.linspace(-0.3, 0.5, 6)
    return norm


HOOKED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "producer": (lambda: _hooked(_Net(), "conv"), lambda: _Net(conv=_TripleConv)),
    "producer before a norm": (
        lambda: _hooked(_Net(norm=_statistics()), "conv"),
        lambda: _Net(norm=_statistics(), conv=_TripleConv),
    ),
    "relu": (lambda: _hooked(_Net(), "act"), lambda: _Net(act=_TripleReLU())),
    "pool behind a relu": (
        lambda: _hooked(_Net(act=nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))), "act.1", _negative),
        lambda: _Net(act=nn.Sequential(nn.ReLU(), _NegativePool(2))),
    ),
    "pool behind a gelu": (
        lambda: _hooked(_Net(act=nn.Sequential(nn.GELU(), nn.MaxPool2d(2))), "act.1", _negative),
        lambda: _Net(act=nn.Sequential(nn.GELU(), _NegativePool(2))),
    ),
    "depthwise": (
        lambda: _hooked(_Net(act=_depthwise(nn.Conv2d)), "act.1"),
        lambda: _Net(act=_depthwise(_TripleConv)),
    ),
    "consumer": (
        lambda: _pre_hooked(_Net()),
        lambda: _Net(lambda net, h: 3 * net.act(h)),
    ),
    "a forward of its own": (lambda: _with_forward(_Net()), lambda: _Net(conv=_TripleConv)),
}


@compiled
@pytest.mark.parametrize("name", list(HOOKED))
def test_hooks_are_part_of_the_network(name: str, compile: bool) -> None:
    hooked, plain = HOOKED[name]
    _assert_alike(_learned(hooked(), _batch(), compile=compile), _learned(plain(), _batch()))


def _centred(net: Any, h: torch.Tensor) -> torch.Tensor:
    return net.act(h - h.mean(0, keepdim=True))


def _against_the_last(net: Any, h: torch.Tensor) -> torch.Tensor:
    return net.act(h - 0.5 * h[-1:])


def _normalised(net: Any, h: torch.Tensor) -> torch.Tensor:
    return net.act(functional.batch_norm(h, None, None, training=True))


def _by_hand(net: Any, h: torch.Tensor) -> torch.Tensor:
    mean = h.mean((0, 2, 3), keepdim=True)
    return net.act((h - mean) * ((h - mean).square().mean((0, 2, 3), keepdim=True) + 1e-5).rsqrt())


def _with_sizes(region: Region) -> Region:
    """Says how many samples there are, so that nothing is stacked or cut."""

    def fixed(net: Any, h: torch.Tensor) -> torch.Tensor:
        return region(net, h.reshape(4, *h.shape[1:]))

    return fixed


@pytest.mark.parametrize(
    ("curvature", "compile"),
    # "mixed" asks of kernels what "batch" does, and more; test_batch_norm_without_statistics asks that alone.
    [("batch", False), ("mixed", False), pytest.param("mixed", True, marks=needs_compiler)],
)
@pytest.mark.parametrize("region", [_centred, _against_the_last, _normalised, _by_hand])
def test_regions_in_which_samples_mix(region: Region, compile: bool, curvature: str) -> None:
    for side in (8, 160):  # more than one slice of y, by the same kernels
        batch = _batch(side)
        found = _learned(_Net(region), batch, compile=compile, curvature=curvature)
        _assert_alike(found, _learned(_Net(_with_sizes(region)), batch, curvature=curvature))


@compiled
def test_batch_norm_without_statistics(compile: bool) -> None:
    norm = nn.BatchNorm2d(6, affine=False, track_running_stats=False)
    _assert_alike(
        _learned(_Net(norm=norm), _batch(), compile=compile), _learned(_Net(_with_sizes(_by_hand)), _batch())
    )


class _SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 7), nn.Linear(7, CLASSES)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(functional.gelu(self.first(x.transpose(0, 1)))).mean(0)


def test_an_example_of_one_sample_tells_where_the_samples_lie() -> None:
    batch = torch.randn(4, 8, 6, dtype=torch.float64), _batch()[1]
    _assert_alike(_learned(_SequenceFirst(), batch, example=batch[0][:1]), _learned(_SequenceFirst(), batch))


@pytest.mark.parametrize("curvature", ["batch", "mixed"])
def test_inputs_that_require_grad(curvature: str) -> None:
    images, labels = _batch()
    given = images.clone().requires_grad_()
    found = _learned(_Net(), (given, labels), example=images, curvature=curvature)
    _assert_alike(found, _learned(_Net(), (images, labels), curvature=curvature))
    assert given.grad is None


def test_a_mean_in_brackets() -> None:
    found = _learned(_Net(), _batch(), loss=lambda o, t: functional.cross_entropy(o, t).view(1))
    _assert_alike(found, _learned(_Net(), _batch(), loss=functional.cross_entropy))


def test_a_sum_in_brackets_is_refused() -> None:
    with pytest.raises(MorphirError, match="sum over the batch"):
        _learned(_Net(), _batch(), loss=lambda o, t: _per_sample(o, t).sum().view(1))


def test_a_loss_of_other_than_the_samples_is_refused() -> None:
    with pytest.raises(MorphirError, match=r"the loss of 4 samples has shape \(2,\)"):
        _learned(_Net(), _batch(), loss=lambda o, t: _per_sample(o, t).view(2, 2).mean(1))


def test_normalize_writes_nothing_in_place() -> None:
    found = _learned(_Net(lambda net, h: functional.normalize(net.act(h), dim=2)), _batch())

    def by_hand(net: Any, h: torch.Tensor) -> torch.Tensor:
        h = net.act(h)
        return h / h.norm(dim=2, keepdim=True).clamp_min(1e-12)

    _assert_alike(found, _learned(_Net(by_hand), _batch()))


def test_backward_hooks_are_dropped_with_a_warning() -> None:
    net = _Net()
    net.act.register_full_backward_hook(lambda module, by_input, by_output: (by_input[0] * 3,))
    with pytest.warns(MorphirWarning, match="no backward hooks: ReLU at 'act' loses its own"):
        found = _learned(net, _batch())
    _assert_alike(found, _learned(_Net(), _batch()))
    assert net.act._backward_hooks


def test_a_hook_after_the_trace_is_refused() -> None:
    graph = morphir.trace(_Net(), _batch()[0])
    handle = graph.get_submodule("act").register_forward_hook(_triple)
    with pytest.raises(MorphirError, match=r"(?s)ReLU at 'act' was given a hook.*test_equivalents.py"):
        morphir.Learner(graph, _per_sample)
    handle.remove()
    morphir.Learner(graph, _per_sample).step(*_batch())


def test_inference_mode_is_refused() -> None:
    graph = morphir.trace(_Net(), _batch()[0])
    learner = morphir.Learner(graph, _per_sample)
    with torch.inference_mode():
        for attempt in (
            lambda: morphir.trace(_Net(), _batch()[0]),
            lambda: morphir.Learner(graph, _per_sample),
            lambda: learner.step(*_batch()),
        ):
            with pytest.raises(MorphirError, match="inference_mode"):
                attempt()


def test_a_loss_that_does_not_depend_on_the_outputs() -> None:
    graph = morphir.trace(_Net(), _batch()[0])

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.ones(4, dtype=torch.float64, requires_grad=True) * 1

    learner = morphir.Learner(graph, loss)
    learner.step(*_batch())
    assert {score.delta_loss for score in learner.scores()} == {0.0}
    with pytest.raises(MorphirError, match="differentiated again"):
        morphir.Learner(graph, loss, score_curvature="fisher").step(*_batch())


def test_a_learner_of_a_network_that_was_moved_is_refused() -> None:
    graph = morphir.trace(_Net(), _batch()[0])
    learner = morphir.Learner(graph, _per_sample)
    graph.float()
    with pytest.raises(MorphirError, match="rewritten or moved"):
        learner.step(_batch()[0].float(), _batch()[1])


def test_a_scripted_module_can_be_trained_around() -> None:
    net = _Net(lambda net, h: net.act(net.scripted(h)))
    net.scripted = torch.jit.script(nn.Conv2d(6, 6, 1).double())
    with pytest.warns(MorphirWarning, match="kept whole"):
        graph = morphir.trace(net, _batch()[0])
    for own in (graph, copy.deepcopy(graph)):
        assert all(parameter.is_leaf and parameter.requires_grad for parameter in own.parameters())
    morphir.Learner(graph, _per_sample).step(*_batch())
    assert all(parameter.requires_grad for parameter in graph.parameters())
