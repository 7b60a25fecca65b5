"""Everything that the analysis calls exact can be learned: producers of every kind, and parts of regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional
from torchvision.models.convnext import CNBlock
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from morphir.analysis.tracing import trace
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.learning.learner import Learner

CLASSES = 4


def _bare(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.4)


class _Head(nn.Module):
    """What all the small networks end with."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(2).mean(2))


class GroupedConvolutions(nn.Module):
    """Rows of one group in every convolution group, and groups of several rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2, groups=2)
        self.plain_up = nn.ConvTranspose2d(6, 5, 3, padding=1)
        self.head = _Head(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.grouped(torch.tanh(self.stem(x)))))
        return self.head(functional.silu(self.plain_up(functional.gelu(self.up(x)))))


class OutputSize(nn.Module):
    """Modules that are called with more than one argument, or by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1)
        self.last = nn.Conv2d(5, 4, 1)
        self.head = _Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = functional.silu(self.down(input=x))
        x = functional.silu(self.up(small, output_size=x.shape[2:]))
        return self.head(functional.silu(self.last(input=x)))


class BareParameters(nn.Module):
    """Functional operators that read parameters directly."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.bias = _bare(5, 3, 3, 3), _bare(5)
        self.up = _bare(5, 6, 2, 2)
        self.one = _bare(7, 6, 1)
        self.weight, self.offset = _bare(6, 7), _bare(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.silu(functional.conv2d(x, self.kernel, self.bias, padding=1))
        x = functional.silu(functional.conv_transpose2d(x, self.up, stride=2))
        x = functional.silu(functional.conv1d(x.flatten(2), self.one, bias=None))
        x = functional.linear(x.mean(2), weight=self.weight, bias=self.offset)
        return self.head(functional.silu(x))


class Products(nn.Module):
    """Matrix products of every spelling, the parameter on either side, through views, samples last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _bare(3, 5)
        self.second = _bare(6, 5)
        self.third, self.addend = _bare(6, 5), _bare(5)
        self.fourth = _bare(5, 7)
        self.fifth = _bare(6, 7)
        self.sixth = _bare(6, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.silu(x.flatten(2).mean(2) @ self.first)
        x = functional.silu(torch.matmul(x, self.second.t()))
        x = functional.silu(torch.addmm(self.addend, x, self.third))
        x = functional.silu(torch.einsum("bi,ij->bj", x, self.fourth))
        x = functional.silu((self.fifth @ x.t()).t())
        return self.head(functional.silu(x.mm(self.sixth)))


class OneAndThreeDimensions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(3, 6, 3, padding=1)
        self.norm3 = nn.BatchNorm3d(6)
        self.line = nn.Conv1d(6, 5, 3, bias=False)
        self.norm1 = nn.BatchNorm1d(5)
        self.head = _Head(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unflatten(2, (2, -1))
        x = functional.max_pool3d(torch.relu(self.norm3(self.volume(x))), 2)
        return self.head(torch.relu(self.norm1(self.line(x.flatten(2)))))


class SharedModule(nn.Module):
    """One kernel makes the channels in two places: one theta, two producers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.shared = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)])
        self.head = _Head(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = torch.relu(self.norms[0](self.shared(x)))
        right = torch.relu(self.norms[1](self.shared(torch.tanh(self.stem(x)))))
        return self.head(left) + self.head(left * right)


class TiedParameter(nn.Module):
    """Two modules that hold the same kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 3, padding=1, dilation=1, bias=False)
        self.right.weight = self.left.weight
        self.head = _Head(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(functional.silu(self.left(x))) + self.head(functional.gelu(self.right(x.flip(3))))


class Multiplier(nn.Module):
    """A depthwise convolution with two outputs a channel in the region."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 5, 1)
        self.head = _Head(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = functional.relu6(self.norm2(self.depthwise(x)))
        return self.head(functional.silu(self.last(x)))


class ShuffledRows(nn.Module):
    """A channel shuffle ties channels of both halves: several rows of each kernel for one group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 5, 1)
        self.head = _Head(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, changed = functional.silu(self.stem(x)).chunk(2, dim=1)
        x = torch.cat((kept, functional.silu(self.branch(changed))), dim=1)
        b, c, h, w = x.size()
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(functional.silu(self.last(x)))


class Transformed(nn.Module):
    """ConvNeXt: layer norm and layer scale around a hidden width of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.block = CNBlock(8, layer_scale=0.5, stochastic_depth_prob=0.0)
        self.head = _Head(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.stem(x)))


class SequenceFirst(nn.Module):
    """A batch that is no leading dimension: positions first, samples second, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 5)
        self.hidden, self.back = nn.Linear(5, 7), nn.Linear(7, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.silu(self.embed(x.flatten(2).permute(2, 0, 1)))
        return self.head(functional.silu(self.back(functional.gelu(self.hidden(x)))).mean(0))


@fx.wrap
def scaled_product(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    return 2 * (x @ kernel) + 1


@fx.wrap
def rectified_product(x: torch.Tensor, kernel: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Two results: no trace goes into this one."""
    return torch.relu(x @ kernel), 2


class Wrapped(nn.Module):
    """A function of the user's own, which no table knows."""

    def __init__(self, *, rectified: bool = False) -> None:
        super().__init__()
        self.rectified = rectified
        self.kernel = _bare(3, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).mean(2)
        x = rectified_product(x, self.kernel)[0] if self.rectified else scaled_product(x, self.kernel)
        return self.head(functional.silu(x))


class BatchStatistics(nn.Module):
    """Samples that depend on each other: what is estimated is the change of their summed loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5, track_running_stats=False)
        self.second = nn.Conv2d(5, 4, 3, padding=1)
        self.head = _Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(functional.silu(self.second(functional.silu(self.norm(self.first(x))))))


class Scattered(nn.Module):
    """Positions and samples in one dimension, the samples inside."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 5)
        self.back = nn.Linear(5, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.size(0)
        x = functional.silu(self.hidden(x.flatten(2).permute(2, 0, 1).reshape(-1, 3)))
        return self.head(functional.silu(self.back(x)).reshape(-1, batch, 6).mean(0))


class CoordinateGate(nn.Module):
    """A gate that linear layers compute from a buffer of coordinates, as swin's position bias is."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(1, 8, 8, 2))
        hidden = [nn.Linear(2, 5), nn.SiLU()] if layers > 1 else []
        self.gate = nn.Sequential(*hidden, nn.Linear(5 if hidden else 2, 6))
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.gate(self.table)).permute(0, 3, 1, 2)
        return self.head(functional.silu(self.conv(x) * gate).mean((2, 3)))


def _vision_transformer() -> nn.Module:
    model = VisionTransformer(8, 4, 2, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight)
    return model


def _swin() -> nn.Module:
    return SwinTransformer(
        [2, 2], 8, depths=[1, 1], num_heads=[2, 2], window_size=[2, 2], num_classes=CLASSES
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "grouped": GroupedConvolutions,
    "output-size": OutputSize,
    "bare": BareParameters,
    "products": Products,
    "dimensions": OneAndThreeDimensions,
    "shared-module": SharedModule,
    "tied": TiedParameter,
    "multiplier": Multiplier,
    "shuffled-rows": ShuffledRows,
    "convnext": Transformed,
    "vision-transformer": _vision_transformer,
    "swin": _swin,
    "sequence-first": SequenceFirst,
    "wrapped": Wrapped,
    "coordinates": CoordinateGate,
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_q_is_the_derivative_of_the_summed_loss(name: str, check_scores: Callable[..., Any]) -> None:
    checked = check_scores(NETWORKS[name](), torch.randn(3, 3, 8, 8, dtype=torch.float64), spaces=30)
    assert checked.spaces
    assert checked.visible == checked.groups


def test_samples_that_depend_on_each_other_can_be_learned_from() -> None:
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    learner = Learner(trace(BatchStatistics().double().eval(), images), functional.cross_entropy)
    learner.step(images, torch.tensor([0, 1, 2]))
    assert not learner.refused
    assert {score.morphism.space for score in learner.scores()} == {"first", "second"}


@pytest.mark.parametrize(
    ("model", "space", "code"),
    [
        (lambda: Wrapped(rectified=True), "kernel", "no-learning-rule"),
        (Scattered, "hidden", "scattered-samples"),
        (lambda: CoordinateGate(layers=2), "gate.0", "scattered-samples"),
    ],
)
def test_what_cannot_be_learned_is_refused_with_the_reason(
    model: Callable[[], nn.Module], space: str, code: str
) -> None:
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    graph = trace(model().double(), images)
    assert {verdict.kind for verdict in graph.space(space).verdicts} == {"exact"}
    learner = Learner(graph, functional.cross_entropy)
    learner.step(images, torch.tensor([0, 1, 2]))
    remark = learner.refused[space]
    assert (remark.kind, remark.code, remark.space) == ("refused", code, space)
    assert remark.source is not None and remark.suggestion
    scored = {(type(s.morphism), s.morphism.space) for s in learner.scores()}
    assert (Split, space) not in scored
    assert ((Prune, space) in scored) == (code == "no-learning-rule")
