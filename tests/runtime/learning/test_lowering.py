"""The lowered program computes what the graph computes, and leaves the graph as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from morphir.analysis.tracing import trace
from morphir.runtime.learning.lowering import Lowered, lower
from morphir.seeds import VGG19, MobileNetV1, ResNet20


class _InPlace(nn.Module):
    """Values that are read again after something was written into them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.conv1(x)
        second = self.conv2(self.relu(first))
        first.add_(second)
        torch.relu_(first)
        functional.leaky_relu(first, 0.3, inplace=True)
        return self.head(first.mean((2, 3)))


NETS: dict[str, Callable[[], nn.Module]] = {
    "in-place": _InPlace,
    "vgg": lambda: VGG19(width=4),
    "mobilenet": lambda: MobileNetV1(width=4),
    "resnet": lambda: ResNet20(width=4),
}


def _lowered(name: str) -> tuple[nn.Module, Lowered]:
    model = NETS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    graph = trace(model, torch.zeros(2, 3, 32, 32, dtype=torch.float64)).eval()
    return graph, lower(graph)


@pytest.mark.parametrize("name", list(NETS))
def test_outputs_are_the_graphs(name: str) -> None:
    graph, lowered = _lowered(name)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    outputs, _ = lowered.program(images)
    torch.testing.assert_close(outputs, graph(images), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(NETS))
def test_regions_turn_y_into_a(name: str) -> None:
    _, lowered = _lowered(name)
    _, captured = lowered.program(torch.randn(3, 3, 32, 32, dtype=torch.float64))
    for space in lowered.spaces:
        assert space.split is not None
        ys = [captured[producer.y] for producer in space.split.producers]
        values = space.split.region.module(*ys, *(captured[slot] for slot in space.split.externals))
        for value, edge in zip(values, space.edges, strict=True):
            torch.testing.assert_close(value, captured[edge.taps[0]], rtol=1e-12, atol=1e-12)


def test_taps_of_one_tensor_are_shared_and_have_gradients_of_their_own() -> None:
    _, lowered = _lowered("resnet")
    stages = {space.name: space for space in lowered.spaces}
    # relu is read by layer1.0.conv1, and passed on by the shortcut.
    stem = stages["conv1"]
    assert [len(edge.taps) for edge in stem.edges] == [1, 1, 1, 1]
    assert len(stem.split.producers if stem.split else ()) == 4
    assert len(set(lowered.taps)) == len(lowered.taps)


def test_relu_regions_are_recognised() -> None:
    _, lowered = _lowered("vgg")
    kinds = [space.split.region.kind for space in lowered.spaces if space.split is not None]
    assert kinds.count("relu") == 11 and kinds.count("general") == 5
    assert all(space.split.region.stackable for space in lowered.spaces if space.split is not None)


def test_folded_norms_follow_the_weights() -> None:
    graph, lowered = _lowered("vgg")
    with torch.no_grad():
        for tensor in (*graph.parameters(), *graph.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.1)
    for folded in lowered.derived:
        folded.refresh()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    outputs, _ = lowered.program(images)
    torch.testing.assert_close(outputs, graph(images), rtol=1e-9, atol=1e-12)
