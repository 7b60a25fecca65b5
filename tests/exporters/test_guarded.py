"""Exports of programs that hold for some shapes alone: source says so, ONNX keeps the batch free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn
from torch.nn import functional as F

from exporters import export_onnx, export_pytorch
from exporters.pytorch_source import PytorchExport, load_exported
from morphir.analysis.tracing import trace
from morphir.errors import TargetLimitError
from morphir.ir.graph import Graph
from morphir.morphisms.split import Split
from passes.transform import transform


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        if h % 2 or w < 2:
            x = F.pad(x, (0, 0, 0, 1))
        if x.size(-1) > 2:
            x = F.max_pool2d(x, 2)
        return self.conv(x).relu()


class Guarded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.one = Block(4)
        self.two = Block(4)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.two(self.one(self.stem(x)))
        if mask is not None:
            x = x * mask
        return self.head(x).mean((2, 3))


def loaded(export: PytorchExport) -> nn.Module:
    network = load_exported(export.source, export.class_name).eval()
    network.load_state_dict(load_file(export.weights))
    return network


def grown() -> Graph:
    graph = trace(Guarded().eval(), torch.randn(2, 3, 9, 9))
    transform(graph, [Split("stem", 1)])
    return graph


def test_source_refuses_the_shapes_that_the_program_refuses(tmp_path: Path) -> None:
    graph = grown()
    export = export_pytorch(graph, tmp_path / "net.py")
    text = export.source.read_text()
    line = Block.forward.__code__.co_firstlineno
    message = f"such inputs take another path at test_guarded.py:{line + 2}"
    assert f'torch._assert((x.shape[2:][0] % 2) != 0, "{message}")' in text
    assert 'torch._assert(mask is None, "such inputs take another path through the model")' in text
    assert "morphir" not in text.lower().replace("exported by morphir", "")
    network = loaded(export)
    x = torch.randn(3, 3, 9, 8)
    assert torch.equal(network(x), graph(x))
    with pytest.raises(AssertionError, match="another path at"):
        network(torch.randn(2, 3, 8, 9))
    with pytest.raises(AssertionError, match="another path through"):
        network(x, torch.ones(1))


def test_source_can_be_traced_again_by_anyone(tmp_path: Path) -> None:
    graph = grown()
    export = export_pytorch(graph, tmp_path / "net.py")
    network = loaded(export)
    again = trace(network, torch.randn(2, 3, 9, 9))
    assert {name: space.width for name, space in again.spaces.items()} == {
        name: space.width for name, space in graph.spaces.items()
    }
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(again(x), graph(x))
    with pytest.raises(AssertionError, match="another path at"):
        again(torch.randn(2, 3, 8, 9))
    assert isinstance(fx.symbolic_trace(network, {"mask": None}), fx.GraphModule)


def test_blocks_with_the_same_questions_share_a_class(tmp_path: Path) -> None:
    graph = trace(Guarded().eval(), torch.randn(2, 3, 9, 9))
    text = export_pytorch(graph, tmp_path / "net.py").source.read_text()
    assert text.count("class Block") == 1
    graph = trace(Guarded().eval(), torch.randn(2, 3, 9, 4))
    text = export_pytorch(graph, tmp_path / "net.py").source.read_text()
    assert text.count("class Block") == 2, "one pools, one does not"


def test_onnx_keeps_the_batch_dynamic(tmp_path: Path) -> None:
    export = export_onnx(grown(), tmp_path / "net.onnx", batch_sizes=(1, 4, 9))
    assert export.max_difference is not None
    assert export.max_difference < 1e-5


class AsksTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 4)
        self.two = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.stack([self.one(row).relu() for row in x]))


def test_onnx_refuses_a_program_for_one_batch_size(tmp_path: Path) -> None:
    graph = trace(AsksTheBatch().eval(), torch.randn(2, 3))
    with pytest.raises(
        TargetLimitError, match=r"does not hold 1: .*`x.size\(0\)` is 2; here it is 1"
    ) as caught:
        export_onnx(graph, tmp_path / "net.onnx")
    line = AsksTheBatch.forward.__code__.co_firstlineno + 1
    assert caught.value.source == f"test_guarded.py:{line}"
    assert not list(tmp_path.iterdir())


class StatisticsOfTheBatch(nn.Module):
    """Batch norm that keeps no running statistics asks for two images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3)) if x.size(1) == 3 else x
        return self.norm(self.linear(x))


def test_onnx_of_a_network_that_takes_no_single_image(tmp_path: Path) -> None:
    graph = trace(StatisticsOfTheBatch().eval(), torch.randn(4, 3, 6, 6))
    with pytest.raises(TargetLimitError, match=r"does not run at batch size 1: Expected more than 1 value"):
        export_onnx(graph, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    assert export_onnx(graph, tmp_path / "net.onnx", batch_sizes=(2, 7)).max_difference is not None
