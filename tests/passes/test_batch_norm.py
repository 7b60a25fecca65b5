"""Batch-norm re-expression: eval mode unchanged exactly, train mode equal to it on the estimation data."""

from __future__ import annotations

import copy

import torch
from torch import nn, optim
from torch.nn import functional

from morphir.analysis.tracing import trace
from morphir.ir.graph import Graph
from morphir.morphisms.split import Split
from passes.batch_norm import ReexpressBatchNorm
from passes.manager import PassManager
from passes.transform import transform


def settled() -> tuple[Graph, torch.Tensor]:
    """A network whose running statistics are those of one batch, so that both modes agree on it."""
    inputs = torch.randn(16, 3, 6, 6, dtype=torch.float64)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=1.0),
        nn.ReLU(),
        nn.Conv2d(4, 2, 3),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).double()
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    nn.init.normal_(model[1].bias)
    graph = trace(model.train(), inputs)
    with torch.no_grad():
        graph(inputs)
    return graph, inputs


def test_both_modes_agree_after_a_split_with_theta() -> None:
    graph, inputs = settled()
    theta = torch.randn(3, 3, 3, dtype=torch.float64) * 0.3
    result = transform(graph, [Split("0", 1, {"0.weight": theta})])
    before = copy.deepcopy(graph).eval()
    with torch.no_grad():
        gap = (copy.deepcopy(graph).train()(inputs) - before(inputs)).abs().max()
        PassManager((ReexpressBatchNorm([inputs], result.index_maps),)).run(graph)
        torch.testing.assert_close(
            copy.deepcopy(graph).eval()(inputs), before(inputs), rtol=1e-12, atol=1e-12
        )
        closed = (copy.deepcopy(graph).train()(inputs) - before(inputs)).abs().max()
    norm = graph.get_submodule("1")
    y = functional.conv2d(inputs, graph.get_parameter("0.weight"), graph.get_parameter("0.bias"))
    torch.testing.assert_close(norm.running_mean, y.mean((0, 2, 3)).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(norm.running_var, y.var((0, 2, 3)).detach(), rtol=1e-10, atol=1e-12)
    # What remains is Bessel's correction, n / (n - 1) with n = 16 * 4 * 4.
    assert gap > 0.05 and closed < 1e-2 * gap + 5e-3


def test_unsplit_channels_keep_their_statistics() -> None:
    graph, inputs = settled()
    norm = graph.get_submodule("1")
    with torch.no_grad():
        norm.running_mean.add_(1.0)
    result = transform(graph, [Split("0", 0)])
    mean = norm.running_mean.clone()
    PassManager((ReexpressBatchNorm([inputs], result.index_maps),)).run(graph)
    assert torch.equal(norm.running_mean[2:], mean[2:])
    assert not torch.equal(norm.running_mean[:2], mean[:2])


def test_moments_are_those_of_the_new_coordinates() -> None:
    """The gradients in the new coordinates, computed by backward, equal the carried first moments."""
    graph, inputs = settled()
    graph.eval()
    result = transform(graph, [Split("0", 1, {"0.weight": torch.randn(3, 3, 3, dtype=torch.float64)})])
    optimizer = optim.SGD(graph.parameters(), lr=0.0, momentum=0.9)
    graph(inputs).square().sum().backward()
    optimizer.step()
    PassManager((ReexpressBatchNorm([inputs], result.index_maps),)).run(graph, optimizer)
    carried = {key: optimizer.state[p]["momentum_buffer"] for key, p in graph.named_parameters()}
    optimizer.zero_grad()
    graph(inputs).square().sum().backward()
    for key, parameter in graph.named_parameters():
        torch.testing.assert_close(carried[key], parameter.grad, rtol=1e-9, atol=1e-9, msg=key)


def test_gradients_are_those_of_the_new_coordinates() -> None:
    graph, inputs = settled()
    graph.eval()
    result = transform(graph, [Split("0", 1, {"0.weight": torch.randn(3, 3, 3, dtype=torch.float64)})])
    graph(inputs).square().sum().backward()
    PassManager((ReexpressBatchNorm([inputs], result.index_maps),)).run(graph)
    carried = {key: parameter.grad for key, parameter in graph.named_parameters()}
    graph.zero_grad()
    graph(inputs).square().sum().backward()
    for key, parameter in graph.named_parameters():
        torch.testing.assert_close(carried[key], parameter.grad, rtol=1e-9, atol=1e-9, msg=key)


def test_norms_that_share_their_affine_map_are_remarked_and_left() -> None:
    """Two norms with statistics of their own would need two new gammas for one."""

    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.two.weight, self.two.bias = self.one.weight, self.one.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.out(self.one(y).relu() + self.two(y * y))

    inputs = torch.randn(4, 3, 5, 5)
    graph = trace(Sharing().eval(), inputs)
    result = transform(graph, [Split("conv", 1)])
    before = graph(inputs)
    report = PassManager((ReexpressBatchNorm([inputs], result.index_maps),)).run(graph)
    assert [remark.code for remark in report.remarks] == ["batch-norm-shared"] * 2
    assert torch.equal(graph(inputs), before)


def test_a_norm_without_affine_map_is_remarked_and_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    inputs = torch.randn(4, 3, 5, 5)
    graph = trace(model, inputs)
    result = transform(graph, [Split("0", 1)])
    report = PassManager((ReexpressBatchNorm([inputs], result.index_maps),)).run(graph)
    assert [remark.code for remark in report.remarks] == ["batch-norm-not-affine"]
