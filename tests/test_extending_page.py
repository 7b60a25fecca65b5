"""The page on writing passes, rules, morphisms and exporters: its code runs, and does what the page says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import morphir
from exporters.registry import EXPORTERS
from morphir.analysis.rules.operation import RULES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the page's code leaves; it runs in one module, in a folder of its own."""
    folder = tmp_path_factory.mktemp("page")
    file, module = folder / "page.py", ModuleType("extending_page")
    file.write_text("\n\n".join(BLOCKS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sys.modules, module.__name__, module)
        torch.manual_seed(0)
        exec(compile(file.read_text(), str(file), "exec"), vars(module))
        yield vars(module)
    RULES.pop("blur", None)


def test_every_section_has_code_that_runs(page: dict[str, Any]) -> None:
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.M)
    assert len(sections) == 5 and all("```python" in section for section in sections)
    assert "program" in page and (Path.cwd() / "net.pt2").exists()


def test_the_pass_prunes_the_smallest_kernels(page: dict[str, Any]) -> None:
    torch.manual_seed(7)
    net = page["Net"]()
    graph = morphir.trace(net, page["images"])
    page["PassManager"]((page["PruneSmallest"](0.5),)).run(graph)
    for layer in (net.conv1, net.conv2):
        norms = layer.weight.detach().double().square().flatten(1).sum(1)
        left = sorted(norms.topk(4).indices.tolist())
        name = "conv1" if layer is net.conv1 else "conv2"
        torch.testing.assert_close(graph.get_parameter(f"{name}.bias"), layer.bias[left], rtol=0, atol=0)


def test_the_rule_freezes_channels_that_the_window_slides_over(page: dict[str, Any]) -> None:
    class Across(page["Net"]):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            stream = torch.relu(self.conv1(images)).permute(0, 2, 3, 1)
            stream = torch.ops.mine.blur(stream).permute(0, 3, 1, 2)
            return self.head(torch.relu(self.conv2(stream)).mean((2, 3)))

    verdict = morphir.trace(Across(), page["images"]).space("conv1").verdict(0)
    assert (verdict.kind, verdict.code) == ("frozen", "window-over-channels")


def test_the_morphism_moves_two_of_three_channels_by_theta(page: dict[str, Any]) -> None:
    net = page["Net"]().double().eval()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    graph = morphir.trace(net, images)
    theta = torch.randn(3, 3, 3, dtype=torch.float64)

    class Moved(page["Triple"]):
        @property
        def parameters(self) -> dict[str, torch.Tensor]:
            return {"conv1.weight": theta}

    (index_map,) = page["index_maps"](graph, [Moved("conv1", 2)])
    page["Rewriter"](graph).apply("triple", [index_map])
    weight, bias = net.conv1.weight.detach(), net.conv1.bias.detach()
    order = [0, 1, 2, 2, 2, 3, 4, 5, 6, 7]
    rows, columns = weight[order].clone(), net.conv2.weight.detach()[:, order].clone()
    rows[2] += theta
    rows[4] -= theta
    columns[:, 2:5] /= 3
    stream = torch.relu(torch.conv2d(images, rows, bias[order], padding=1))
    stream = torch.relu(torch.conv2d(stream, columns, net.conv2.bias, padding=1))
    expected = net.head(stream.mean((2, 3)))
    torch.testing.assert_close(graph(images), expected, rtol=1e-12, atol=1e-12)


def test_what_the_page_says_of_the_tables_is_so(page: dict[str, Any]) -> None:
    assert "program" not in EXPORTERS
    with pytest.raises(TypeError, match="does not support item assignment"):
        EXPORTERS["program"] = page["program"]  # pyright: ignore[reportIndexIssue]
