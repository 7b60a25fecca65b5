"""ONNX export: what the file holds, that it computes what the graph computes, and what is refused."""

import json
import logging
from pathlib import Path

import numpy
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exporters import export_onnx
from exporters.onnx_check import compare
from exporters.onnx_clean import history_json
from morphir.errors import ExportError
from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap, Rewrite
from morphir.ir.trace import trace_program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.mix = nn.Linear(4, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor, extra: torch.Tensor) -> dict[str, torch.Tensor]:
        x = F.relu(self.bn(self.conv(image)))
        x = F.dropout(x.mean((2, 3)) + self.mix(extra), 0.5, self.training)
        return {"logits": self.head(x), "features": x}


def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    nn.init.normal_(model.bn.running_mean)
    nn.init.uniform_(model.bn.running_var, 0.5, 2.0)
    nn.init.uniform_(model.bn.weight, 0.5, 1.5)
    nn.init.normal_(model.bn.bias)
    return model.eval()


def graph_of(model: nn.Module) -> Graph:
    return trace_program(model, (torch.randn(1, 3, 6, 6), torch.randn(1, 4)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = graph_of(net())
    graph.record(Rewrite(1, "SplitChannels", ("split conv[0]",), (IndexMap.identity("conv", 8),), 41))
    export = export_onnx(graph, tmp_path_factory.mktemp("onnx") / "net.onnx")
    assert export.inputs == ("image", "extra")
    assert export.outputs == ("logits", "features")
    assert export.max_difference is not None
    assert export.max_difference < 1e-5
    assert [path.name for path in export.path.parent.iterdir()] == ["net.onnx"]
    return export.path


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_file_computes_what_the_model_computes(exported: Path, batch_size: int) -> None:
    image, extra = torch.randn(batch_size, 3, 6, 6), torch.randn(batch_size, 4)
    with torch.no_grad():
        wanted = net()(image, extra)
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    logits, features = session.run(["logits", "features"], {"image": image.numpy(), "extra": extra.numpy()})
    numpy.testing.assert_allclose(logits, wanted["logits"].numpy(), rtol=1e-3, atol=1e-5)
    numpy.testing.assert_allclose(features, wanted["features"].numpy(), rtol=1e-3, atol=1e-5)
    assert (logits.argmax(1) == wanted["logits"].numpy().argmax(1)).all()


def test_file_tells_how_the_network_grew_but_not_where(exported: Path) -> None:
    data = exported.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in data
    assert str(Path(__file__).parent).encode() not in data
    assert b"stack_trace" not in data
    facts = {entry.key: entry.value for entry in onnx.load(exported).metadata_props}
    assert facts["morphir.model"] == "Net"
    assert facts["morphir.parameters"] == str(sum(p.numel() for p in net().parameters()))
    (rewrite,) = json.loads(facts["morphir.history"])
    assert rewrite["name"] == "SplitChannels"
    assert rewrite["maps"][0]["sources"] == list(range(8))


def test_a_very_long_history_is_shortened() -> None:
    wide = IndexMap("conv", 4000, tuple(range(4000)), (1.0,) * 4000, (0,) * 4000)
    history = tuple(Rewrite(at + 1, "SplitChannels", (), (wide,), 0) for at in range(60))
    text = history_json(history)
    assert len(text) < 1_000_000
    data = json.loads(text)
    assert data["truncated"] == "widths"
    assert data["rewrites"][-1]["widths"] == {"conv": [4000, 4000]}
    assert json.loads(history_json(history[:1]))[0]["maps"][0]["space"] == "conv"


def test_train_mode_is_refused(tmp_path: Path) -> None:
    graph = graph_of(net()).train()
    with pytest.raises(ExportError, match=r"train mode(.|\n)*graph\.eval\(\)"):
        export_onnx(graph, tmp_path / "net.onnx")
    graph.eval()
    graph.get_submodule("bn").train()
    with pytest.raises(ExportError, match="train mode"):
        export_onnx(graph, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_other_dtypes_and_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="float64"):
        export_onnx(graph_of(net()).double(), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=r"\.onnx file"):
        export_onnx(graph_of(net()), tmp_path / "net.py")


def test_too_large_a_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.onnx.LIMIT_BYTES", 1000)
    with pytest.raises(ExportError, match=r"1\.8 GB"):
        export_onnx(graph_of(net()), tmp_path / "net.onnx")


class Literal(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(2, 12)


def test_a_literal_batch_size_is_a_clear_error(tmp_path: Path) -> None:
    graph = trace_program(Literal().eval(), torch.randn(2, 3, 4))
    with pytest.raises(ExportError, match="cannot export"):
        export_onnx(graph, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_noticed(exported: Path) -> None:
    graph = graph_of(net())
    with torch.no_grad():
        graph.get_submodule("head").bias[1] += 1.0
    with pytest.raises(ExportError, match=r"output 0 at batch size 2 differs .* by 1 absolute"):
        compare(graph, exported, (2,))


def test_export_is_quiet_and_leaves_the_graph_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    graph = graph_of(net())
    before = {key: tensor.clone() for key, tensor in graph.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        export_onnx(graph, tmp_path / "deep" / "net.onnx", opset=18, verify=False)
    assert "".join(capfd.readouterr()) == ""
    assert caplog.records == []
    assert all(torch.equal(before[key], tensor) for key, tensor in graph.state_dict().items())
    assert onnx.load(tmp_path / "deep" / "net.onnx").opset_import[0].version == 18
