"""One corrupted graph for every invariant, and the message that names it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphir.analysis.tracing import trace
from morphir.analysis.verify import differences, verify_channels
from morphir.errors import MorphirError, VerificationError
from morphir.ir.channel_invariants import CHANNEL_INVARIANTS
from morphir.ir.channels import AxisBinding, ChannelSpace, Value, ValueLayout
from morphir.ir.graph import Graph
from morphir.ir.groups import Groups
from morphir.ir.program_invariants import PROGRAM_INVARIANTS
from morphir.ir.verify import verify


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.norm = nn.GroupNorm(2, 6)
        self.prelu = nn.PReLU(6)
        self.bare = nn.Parameter(torch.ones(6, 1, 1))
        self.ln = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.bn(self.conv(x)))
        x = self.prelu(self.norm(x)) * self.bare
        return self.fc(self.ln(x.mean((2, 3))))


def small() -> Graph:
    return trace(SmallNet(), torch.randn(2, 3, 6, 6))


def with_space(graph: Graph, name: str, /, **changes: Any) -> None:
    spaces = {**graph.spaces, name: dataclasses.replace(graph.spaces[name], **changes)}
    graph.attach(dataclasses.replace(graph.channels, spaces=spaces))


def with_binding(graph: Graph, name: str, change: Callable[[AxisBinding], AxisBinding]) -> None:
    first, *others = graph.spaces[name].bindings
    with_space(graph, name, bindings=(change(first), *others))


def with_value(graph: Graph, node: str, *values: Value) -> None:
    graph.attach(dataclasses.replace(graph.channels, values={**graph.channels.values, node: values}))


def with_layout(graph: Graph, space: str, groups: tuple[int, ...]) -> None:
    layout = ValueLayout(space, 1, Groups.of(groups))
    with_value(graph, "bn", Value((2, 4, 4, 4), torch.float32, (layout,)))


def use_before_definition(graph: Graph) -> None:
    graph.node("conv").append(graph.node("up"))


def two_nodes_of_one_name(graph: Graph) -> None:
    graph.node("up").name = "conv"


def no_output(graph: Graph) -> None:
    graph.graph.erase_node(graph.node("output"))


def missing_module(graph: Graph) -> None:
    graph.node("conv").target = "missing"


def missing_attribute(graph: Graph) -> None:
    graph.node("bare").target = "missing.bare"


def conv_attributes(graph: Graph) -> None:
    graph.conv.out_channels = 5


def transposed_attributes(graph: Graph) -> None:
    graph.up.groups = 3


def linear_attributes(graph: Graph) -> None:
    graph.fc.in_features = 7


def batch_norm_attributes(graph: Graph) -> None:
    graph.bn.running_var = torch.ones(5)


def group_norm_attributes(graph: Graph) -> None:
    graph.norm.num_channels = 8


def layer_norm_attributes(graph: Graph) -> None:
    graph.ln.normalized_shape = (7,)


def prelu_attributes(graph: Graph) -> None:
    graph.prelu.num_parameters = 7


def shared_memory(graph: Graph) -> None:
    graph.norm.weight = nn.Parameter(graph.prelu.weight.data)


def unknown_node(graph: Graph) -> None:
    values = dict(graph.channels.values)
    graph.attach(dataclasses.replace(graph.channels, values={**values, "ghost": values["conv"]}))


def forgotten_node(graph: Graph) -> None:
    values = {name: value for name, value in graph.channels.values.items() if name != "bn"}
    graph.attach(dataclasses.replace(graph.channels, values=values))


def unknown_space(graph: Graph) -> None:
    with_layout(graph, "ghost", (0, 1, 2, 3))


def short_layout(graph: Graph) -> None:
    with_layout(graph, "conv", (0, 1, 2))


def layout_of_no_group(graph: Graph) -> None:
    with_layout(graph, "conv", (0, 1, 2, 4))


def misnamed_space(graph: Graph) -> None:
    with_space(graph, "conv", name="other")


def binding_of_nothing(graph: Graph) -> None:
    with_binding(graph, "conv", lambda binding: dataclasses.replace(binding, parameter="ghost.weight"))


def short_binding(graph: Graph) -> None:
    with_binding(graph, "conv", lambda binding: dataclasses.replace(binding, groups=Groups.of((0, 1, 0))))


def binding_to_no_group(graph: Graph) -> None:
    with_binding(graph, "conv", lambda binding: dataclasses.replace(binding, groups=Groups.of((0, 1, 0, 9))))


def double_binding(graph: Graph) -> None:
    with_space(graph, "conv", bindings=(*graph.spaces["conv"].bindings, graph.spaces["conv"].bindings[0]))


def group_without_rows(graph: Graph) -> None:
    with_binding(graph, "conv", lambda binding: dataclasses.replace(binding, groups=Groups.of((0, 0, 0, 0))))


def missing_producer(graph: Graph) -> None:
    (producer,) = graph.spaces["conv"].producers
    with_space(graph, "conv", producers=(dataclasses.replace(producer, node="ghost"),))


def missing_edge(graph: Graph) -> None:
    (consumer,) = graph.spaces["conv"].consumers
    with_space(graph, "conv", consumers=(dataclasses.replace(consumer, tensor="conv"),))


def long_edge(graph: Graph) -> None:
    (consumer,) = graph.spaces["conv"].consumers
    with_space(graph, "conv", consumers=(dataclasses.replace(consumer, groups=Groups.of((0, 1))),))


CORRUPTIONS = [
    (use_before_definition, "%up reads %bn, which is not defined before it"),
    (two_nodes_of_one_name, "two nodes are named %conv"),
    (no_output, "the program has 0 outputs, not one at its end"),
    (missing_module, "%conv refers to module 'missing', which the graph does not own"),
    (missing_attribute, "%bare refers to attribute 'missing.bare', which the graph does not own"),
    (conv_attributes, "conv.weight has shape (4, 3, 3, 3), but the attributes of conv say (5, 3, 3, 3)"),
    (transposed_attributes, "up.weight has shape (4, 3, 3, 3), but the attributes of up say (4, 2, 3, 3)"),
    (linear_attributes, "fc.weight has shape (5, 6), but the attributes of fc say (5, 7)"),
    (batch_norm_attributes, "bn.running_var has shape (5,), but the attributes of bn say (4,)"),
    (group_norm_attributes, "norm.weight has shape (6,), but the attributes of norm say (8,)"),
    (layer_norm_attributes, "ln.weight has shape (6,), but the attributes of ln say (7,)"),
    (prelu_attributes, "prelu.weight has shape (6,), but the attributes of prelu say (7,)"),
    (shared_memory, "the parameters norm.weight and prelu.weight are different, but share their memory"),
    (unknown_node, "the channel layer knows a node %ghost, which the program has not"),
    (forgotten_node, "the channel layer does not know %bn"),
    (unknown_space, "%bn holds channels of 'ghost', which is no space"),
    (short_layout, "%bn has shape (2, 4, 4, 4), but 3 positions of conv along dimension 1"),
    (layout_of_no_group, "%bn holds a group that conv has not"),
    (misnamed_space, "the space 'other' is registered as 'conv'"),
    (binding_of_nothing, "conv binds ghost.weight, which the graph does not own"),
    (short_binding, "conv binds 3 entries of axis 0 of conv.weight, whose shape is (4, 3, 3, 3)"),
    (binding_to_no_group, "conv has 2 groups, but binds conv.weight to another"),
    (double_binding, "entry 0 of axis 0 of conv.weight is bound twice, to conv[0] and to conv[0]"),
    (group_without_rows, "conv.weight is a producer of conv, but makes no group 1"),
    (missing_producer, "conv is made by %ghost, which the program has not"),
    (missing_edge, "conv is read by %up from %conv: no such edge"),
    (long_edge, "%up reads 2 positions of conv from %bn, which has not as many along dimension 1"),
]


@pytest.mark.parametrize(
    ("corrupt", "message"), CORRUPTIONS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_corrupted_graph_is_refused(corrupt: Callable[[Graph], None], message: str) -> None:
    graph = small()
    verify(graph)
    corrupt(graph)
    with pytest.raises(VerificationError, match=re.escape(message)):
        verify(graph)


@pytest.fixture(scope="module")
def corrupted() -> list[Graph]:
    graphs = [small() for _ in CORRUPTIONS]
    for graph, (corrupt, _) in zip(graphs, CORRUPTIONS, strict=True):
        corrupt(graph)
    return graphs


@pytest.mark.parametrize(
    "check", [*PROGRAM_INVARIANTS, *CHANNEL_INVARIANTS], ids=lambda check: check.__name__
)
def test_every_invariant_is_broken_by_some_corruption(
    check: Callable[[Graph], Any], corrupted: list[Graph]
) -> None:
    def broken(graph: Graph) -> bool:
        try:
            return next(iter(check(graph)), None) is not None
        except (AttributeError, KeyError, MorphirError):
            return False

    assert any(broken(graph) for graph in corrupted)


def test_the_message_shows_the_node_its_neighbours_and_the_users_line() -> None:
    graph = small()
    graph.bn.running_var = torch.ones(5)
    with pytest.raises(VerificationError) as caught:
        verify(graph)
    line = SmallNet.forward.__code__.co_firstlineno + 1
    text = str(caught.value)
    printed = "%bn: f32[N,{conv:2*2},4,4] = batch_norm(%conv, @bn.weight, @bn.bias)"
    assert f"\n  > {printed}      # test_verify.py:{line}\n" in text
    assert "\n    %conv: " in text
    assert "\n    %up: " in text
    assert f"test_verify.py:{line}: x = self.up(self.bn(self.conv(x)))" in text
    assert f"at: %bn (test_verify.py:{line})" in text
    assert "hint:" in text


def swapped_groups(graph: Graph) -> None:
    with_binding(graph, "conv", lambda binding: dataclasses.replace(binding, groups=Groups.of((0, 1, 1, 0))))


def stale_shape(graph: Graph) -> None:
    with_value(graph, "mean", Value((2, 7), torch.float32))


def lost_space(graph: Graph) -> None:
    values = {
        name: tuple(dataclasses.replace(v, layouts=()) for v in values)
        for name, values in graph.channels.values.items()
    }
    spaces: dict[str, ChannelSpace] = {n: s for n, s in graph.spaces.items() if n != "fc"}
    graph.attach(dataclasses.replace(graph.channels, spaces=spaces, values=values))


def lost_consumer(graph: Graph) -> None:
    with_space(graph, "conv", consumers=())


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (swapped_groups, "the bindings of conv are other than the channel layer says"),
        (stale_shape, "%mean has the shapes [(2, 6)], the channel layer says [(2, 7)]"),
        (lost_space, "the analysis finds other spaces than the channel layer: fc"),
        (lost_consumer, "the consumers of conv are other than the channel layer says"),
    ],
)
def test_a_channel_layer_that_the_analysis_does_not_find_is_refused(
    corrupt: Callable[[Graph], None], message: str
) -> None:
    graph = small()
    verify_channels(graph)
    corrupt(graph)
    verify(graph)
    with pytest.raises(VerificationError, match=re.escape(message)):
        verify_channels(graph)


def test_another_width_is_a_difference() -> None:
    graph = small()
    found = graph.channels
    with_space(graph, "fc", verdicts=found.spaces["fc"].verdicts[:4])
    assert "fc has 5 groups, the channel layer says 4" in [
        f.message for f in differences(graph.channels, found)
    ]
