"""The textual IR: golden for a small net of many kinds of nodes, and its small print one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.tracing import trace
from morphir.ir.channels import Value, ValueLayout
from morphir.ir.groups import Groups
from morphir.ir.printer import print_graph, print_node, print_operations, print_value


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4, eps=1e-3)
        self.act = nn.LeakyReLU(0.2, inplace=True)
        self.conv2 = nn.Conv2d(3, 2, (1, 3), stride=2, padding=(0, 1))
        self.pool = nn.MaxPool2d(2)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.fc = nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        left = self.pool(self.act(self.bn(self.conv1(x)))) * self.scale
        joined = torch.cat([left, F.dropout(self.conv2(x), 0.1, self.training)], dim=1)
        n = joined.size(0)
        return {"logits": self.fc(joined.view(n, -1)), "corner": joined[:, :4, 0, ::2]}


def test_golden(golden: Callable[[str, str], None]) -> None:
    graph = trace(SmallNet().eval(), torch.randn(2, 3, 8, 8))
    text = print_graph(graph)
    golden("small_net", text)
    assert text.isascii()
    assert text == print_graph(trace(SmallNet().eval(), torch.randn(2, 3, 8, 8)))


def test_a_node_prints_as_its_line_of_the_graph() -> None:
    graph = trace(SmallNet(), torch.randn(2, 3, 8, 8))
    lines = [line.strip() for line in print_graph(graph).splitlines()]
    for node in graph.graph.nodes:
        if node.op != "placeholder":
            assert print_node(graph, node.name) in lines


def test_operations_tell_programs_apart_and_nothing_else() -> None:
    def operations(slope: float, side: int) -> str:
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(slope))
        return print_operations(trace(model, torch.randn(2, 3, side, side)))

    assert operations(0.2, 8).splitlines() == [
        "%input_1",
        "%_0 = conv2d(%input_1, @0.weight, @0.bias) {kernel_size=3, padding=1}",
        "%_1 = leaky_relu(%_0) {negative_slope=0.2}",
        "return %_1",
    ]
    assert operations(0.2, 8) == operations(0.2, 16) != operations(0.3, 8)


@pytest.mark.parametrize(
    ("shape", "layouts", "text"),
    [
        ((2, 3, 8), (), "f32[N,3,8]"),
        ((3, 3, 8), (), "f32[3,3,8]"),
        ((2, 2), (ValueLayout("a", 1, Groups.of((0, 1))),), "f32[N,{a:2}]"),
        ((2, 6), (ValueLayout("a", 1, Groups.of((0, 0, 0, 1, 1, 1))),), "f32[N,{a:2*3}]"),
        ((2, 3), (ValueLayout("a", 1, Groups.of((0, 0, 1))),), "f32[N,{a:3}]"),
        ((2, 4), (ValueLayout("a", 1, Groups.of((-1, 0, 1, -1))),), "f32[N,{a:2+2}]"),
        (
            (2, 3),
            (ValueLayout("b", 1, Groups.of((-1, -1, 0))), ValueLayout("a", 1, Groups.of((0, 1, -1)))),
            "f32[N,{a:2+b:1}]",
        ),
        ((), (), "f32[]"),
    ],
)
def test_types(shape: tuple[int, ...], layouts: tuple[ValueLayout, ...], text: str) -> None:
    assert print_value(Value(shape, torch.float32, layouts), 2) == text


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.bool, "b1"), (torch.complex64, "complex64")]
)
def test_dtypes(dtype: torch.dtype, name: str) -> None:
    assert print_value(Value((1,), dtype), None) == f"{name}[1]"


def test_a_users_odd_names_print_in_ascii() -> None:
    model = nn.Sequential()
    model.add_module("größe", nn.Linear(3, 2))
    assert print_graph(trace(model, torch.randn(2, 3))).isascii()
