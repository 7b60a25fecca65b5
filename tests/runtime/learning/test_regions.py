"""A region computes its own channels alone, and computes on them what the whole program does."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from morphir.analysis.tracing import trace
from morphir.ir.graph import Graph
from morphir.runtime.learning.lowering import lower
from morphir.runtime.learning.own_channels import ChannelMap, OwnChannels
from morphir.runtime.learning.programs import Lowered, SpaceProgram
from morphir.runtime.learning.selection import take
from morphir.runtime.oracle.subjects import randomise_norms

CLASSES = 3


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(2).mean(2))


class Dense(nn.Module):
    """Every layer reads the concatenation of all before it, through a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4 + 3 * i) for i in range(4)])
        self.convs = nn.ModuleList([nn.Conv2d(4 + 3 * i, 3, 3, padding=1) for i in range(3)])
        self.head = Head(13)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            features.append(conv(torch.relu(norm(torch.cat(features, 1)))))
        return self.head(torch.relu(self.norms[3](torch.cat(features, 1))))


class Parametric(nn.Module):
    """Everything that holds a value for each channel, behind a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 3, padding=1)
        self.slope = nn.PReLU(9)
        self.instance = nn.InstanceNorm2d(9, affine=True)
        self.depthwise = nn.Conv2d(9, 18, 3, padding=1, groups=9, bias=False)
        self.folded = nn.BatchNorm2d(18)
        self.gamma = nn.Parameter(torch.rand(18, 1, 1) + 0.5)
        self.register_buffer("offset", torch.randn(1, 18, 1, 1))
        self.kernel = nn.Parameter(torch.randn(18, 1, 3, 3) * 0.3)
        self.register_buffer("mean", torch.randn(18))
        self.register_buffer("variance", torch.rand(18) + 0.5)
        self.head = Head(18)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.left(x), torch.tanh(self.right(x))], dim=1)
        x = self.folded(self.depthwise(self.instance(self.slope(x)))) * self.gamma + self.offset
        x = functional.conv2d(x, self.kernel, padding=1, groups=18)
        return self.head(functional.silu(functional.batch_norm(x, self.mean, self.variance)))


class WithInput(nn.Module):
    """The model input's channels are in no space, and stay where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.head = Head(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(functional.silu(self.norm(torch.cat((self.left(x), x, self.right(x)), 1))))


class CutElsewhere(nn.Module):
    """Concatenated, and split at other places: the bounds of a slice and a split's sizes move."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(3, width, 3, padding=1) for width in (4, 6, 2)])
        self.first, self.second = nn.Conv2d(6, 4, 1), nn.Conv2d(3, 4, 1)
        self.third = nn.Conv2d(7, 4, 1)
        self.head = Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([branch(x) for branch in self.branches], 1)
        start, middle, _ = functional.silu(x).split([6, 3, 3], dim=1)
        end = functional.gelu(x)[:, 5:]
        return self.head(torch.tanh(self.first(start) + self.second(middle)) * torch.tanh(self.third(end)))


class Shuffled(nn.Module):
    """Each branch is shuffled on its own, then both by views whose sizes hold their number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = Head(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.cat([self.left(x), functional.silu(self.right(x))], 1))
        b, c, h, w = x.shape
        x = x.view(b, c // 4, 4, h, w).transpose(1, 2).reshape(b, 8, h, w)
        return self.head(functional.silu(x))


class Flattened(nn.Module):
    """A concatenation that is flattened: every channel is a run of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(9)
        self.head = nn.Linear(9 * 16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.cat([self.left(x), self.right(x)], 1))
        return self.head(torch.flatten(functional.silu(x), 1))


class Twice(nn.Module):
    """The same tensor twice in one concatenation, another between."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(13)
        self.head = Head(13)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.left(x)
        return self.head(functional.silu(self.norm(torch.cat([left, self.right(x), left], 1))))


class Branches(nn.Module):
    """An inception block: ReLUs that are concatenated, and read with and without a pool between."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 3, padding=1)
        self.first = nn.Conv2d(9, 4, 1)
        self.second = nn.Conv2d(9, 4, 1)
        self.head = Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1)
        return self.head(torch.tanh(self.first(x) + self.second(pooled)))


class Picked(nn.Module):
    """A concatenation in another order, which a buffer holds: every space has an order of its own."""

    order: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 3, padding=1)
        self.register_buffer("order", torch.tensor([3, 8, 0, 5, 1, 2, 7, 4, 6]))
        self.norm = nn.BatchNorm2d(9)
        self.head = Head(9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)[:, self.order]
        return self.head(functional.silu(self.norm(x)))


class SharedRows(nn.Module):
    """Parts of one kernel's rows are tied to other producers: each space learns its own rows alone."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(3, 7, 3, padding=1)
        self.add = nn.Conv2d(3, 3, 1)
        self.gate = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(15, 4, 1)
        self.head = Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.norm(self.wide(x)).split([3, 5], dim=1)
        top, bottom = self.up(x).split([3, 4], dim=1)
        parts = [left + self.add(x), right, top, bottom * torch.sigmoid(self.gate(x))]
        return self.head(torch.tanh(self.last(functional.silu(torch.cat(parts, 1)))))


class BesideOutput(nn.Module):
    """Channels that also leave the model must not be pruned: they stay in the others' region."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = nn.Conv2d(3, 2, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(11)
        self.head = Head(11)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        middle = self.middle(x)
        x = self.norm(torch.cat([self.left(x), middle, self.right(x)], 1))
        return self.head(functional.silu(x)), middle


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "dense": (Dense, 4),
    "parametric": (Parametric, 2),
    "with-input": (WithInput, 2),
    "cut-elsewhere": (CutElsewhere, 3),
    "shuffled": (Shuffled, 2),
    "flattened": (Flattened, 2),
    "twice": (Twice, 2),
    "branches": (Branches, 2),
    "picked": (Picked, 2),
    "shared-rows": (SharedRows, 4),
}
REGIONS = {**NETWORKS, "beside-output": (BesideOutput, 2)}


def _graph(name: str) -> Graph:
    graph = trace(REGIONS[name][0]().double().eval(), torch.zeros(2, 3, 4, 4, dtype=torch.float64))
    randomise_norms(graph, 0)
    return graph


def _narrow_spaces(lowered: Lowered) -> list[SpaceProgram]:
    return [s for s in lowered.spaces if s.split is not None and s.split.region.channels.copies]


def _whole(channel_map: ChannelMap, space: str, values: Collection[Any]) -> OwnChannels:
    del space, values
    return OwnChannels.of(channel_map, ())


def _run(program: SpaceProgram, captured: list[Any], moved: list[torch.Tensor]) -> list[torch.Tensor]:
    assert program.split is not None
    ys = [take(p.part, y) for p, y in zip(program.split.producers, moved, strict=True)]
    return program.split.region.module(
        *ys, *(take(x.part, captured[x.slot]) for x in program.split.externals)
    )


@pytest.mark.parametrize("name", list(REGIONS))
def test_a_part_of_a_region_is_that_part_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and vector-Jacobian products, at a y that is not the program's."""
    graph = _graph(name)
    narrow = lower(graph)
    monkeypatch.setattr(ChannelMap, "own", _whole)
    whole = {space.name: space for space in lower(graph).spaces}
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    captured = (
        [x.detach() for x in narrow.program(images)[1]],
        [x.detach() for x in lower(graph).program(images)[1]],
    )
    programs = _narrow_spaces(narrow)
    assert len(programs) == REGIONS[name][1]
    for program in programs:
        full = whole[program.name]
        assert program.split is not None and full.split is not None
        moved = [
            (captured[0][p.y] + torch.randn_like(captured[0][p.y])).requires_grad_()
            for p in program.split.producers
        ]
        outputs = _run(program, captured[0], moved), _run(full, captured[1], moved)
        assert sum(x.numel() for x in outputs[0]) < sum(x.numel() for x in outputs[1])
        for found, expected, edge in zip(*outputs, program.edges, strict=True):
            own = take(edge.part, expected)
            torch.testing.assert_close(found, own, rtol=1e-13, atol=1e-13)
            g = torch.randn_like(own)
            gradients = [
                torch.autograd.grad(x, moved, g, allow_unused=True, retain_graph=True) for x in (found, own)
            ]
            torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_q_is_the_derivative_of_the_summed_loss(name: str, check_scores: Callable[..., Any]) -> None:
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    checked = check_scores(NETWORKS[name][0](), images, spaces=30)
    assert checked.visible >= NETWORKS[name][1]


def test_a_dense_network_computes_no_concatenation_twice() -> None:
    for program in lower(_graph("dense")).spaces:
        assert program.split is not None
        nodes: list[fx.Node] = list(program.split.region.module.graph.nodes)
        assert not [node for node in nodes if node.target is torch.cat]
        assert len(program.split.externals) == 0
        assert program.split.region.stackable


def test_theta_has_the_spaces_own_rows_alone() -> None:
    graph = _graph("shared-rows")
    rows = {
        (program.name, producer.parameter): producer.rows.positions
        for program in lower(graph).spaces
        if program.split is not None
        for producer in program.split.producers
        if producer.rows is not None
    }
    expected = {
        ("wide", "wide.weight"): (0, 1, 2),
        ("wide#2", "wide.weight"): (3, 4, 5, 6, 7),
        ("up", "up.weight"): (0, 1, 2),
        ("up#2", "up.weight"): (3, 4, 5, 6),
    }
    assert rows == expected


def test_narrowed_modules_follow_the_weights() -> None:
    graph = _graph("parametric")
    lowered = lower(graph)
    with torch.no_grad():
        for tensor in (*graph.parameters(), *graph.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor * 1.1
    for derived in lowered.derived:
        derived.refresh()
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    captured = [x.detach() for x in lowered.program(images)[1]]
    for program in _narrow_spaces(lowered):
        assert program.split is not None
        found = _run(program, captured, [captured[p.y] for p in program.split.producers])
        for value, edge in zip(found, program.edges, strict=True):
            expected = take(edge.part, captured[edge.taps[0]])
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


class Masked(nn.Module):
    """A buffer of whole numbers that no rewrite has to change."""

    keep: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("keep", torch.tensor([1, 0, 1, 1]))
        self.head = Head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.conv(x) * self.keep))


def test_a_buffer_of_numbers_is_read_where_it_is() -> None:
    graph = trace(Masked().double().eval(), torch.zeros(2, 3, 4, 4, dtype=torch.float64))
    (program,) = lower(graph).spaces
    assert program.split is not None
    y = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    for keep in (torch.tensor([1, 0, 1, 1]), torch.tensor([0, 0, 1, 5])):
        graph.get_buffer("keep").copy_(keep)
        (found,) = program.split.region.module(y)
        torch.testing.assert_close(found, torch.tanh(y * keep).flatten(2).mean(2))
