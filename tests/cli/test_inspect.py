"""``morphir inspect``: its JSON is what the API says, its tables hold the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from typer.testing import Result

from morphir.analysis.cost import cost
from morphir.analysis.explain import explain
from morphir.analysis.locality import locality
from morphir.analysis.tracing import trace
from morphir.ir.codes import suggestion_for
from morphir.ir.graph import Graph
from morphir.ir.printer import print_graph
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.seeds import ResNet20
from passes.transform import transform

Invoke = Callable[..., Result]


RESNET = ("resnet20", "--width", 2, "--image-size", 16)


def resnet() -> Graph:
    return trace(ResNet20(width=2), torch.zeros(4, 3, 16, 16))


def test_json_agrees_with_the_api(invoke: Invoke) -> None:
    result = invoke("inspect", *RESNET, "--json")
    assert result.exit_code == 0
    found, graph = json.loads(result.stdout), resnet()
    assert (found["parameters"], found["macs"]) == (cost(graph).parameters, cost(graph).macs)
    assert [space["name"] for space in found["spaces"]] == list(graph.spaces)
    for described, space in zip(found["spaces"], graph.spaces.values(), strict=True):
        kinds = [space.verdict(index).kind for index in range(space.width)]
        counts = tuple(kinds.count(kind) for kind in ("exact", "prune-only", "frozen"))
        assert (described["exact"], described["prune_only"], described["frozen"]) == counts
        assert [p["parameter"] for p in described["producers"]] == [p.parameter for p in space.producers]
        assert [c["node"] for c in described["consumers"]] == [c.node for c in space.consumers]
        assert sum(reason["groups"] for reason in described["reasons"]) == counts[1] + counts[2]


def test_costs_are_what_a_rewrite_changes(invoke: Invoke) -> None:
    found = json.loads(invoke("inspect", *RESNET, "--json").stdout)
    space = next(space for space in found["spaces"] if space["name"] == "layer2.0.conv2")
    for kind, morphism in (("split", Split), ("prune", Prune)):
        graph = resnet()
        before = cost(graph)
        transform(graph, [morphism("layer2.0.conv2", 0)])
        assert space[kind]["parameters"] == cost(graph).parameters - before.parameters
        assert space[kind]["macs"] == cost(graph).macs - before.macs


def test_the_table_has_a_line_per_space_and_says_why(invoke: Invoke) -> None:
    result = invoke("inspect", *RESNET)
    assert result.exit_code == 0
    for name in resnet().spaces:
        assert any(line.split()[:1] == [name] for line in result.stdout.splitlines())
    assert "10 frozen: channel of a" in result.stdout


def test_space_shows_its_locality(invoke: Invoke) -> None:
    result = invoke("inspect", *RESNET, "--space", "layer1.0.conv1")
    assert str(locality(resnet(), "layer1.0.conv1")) in result.stdout
    assert "resnet.py:" in result.stdout
    found = json.loads(invoke("inspect", *RESNET, "--space", "layer1.0.conv1", "--json").stdout)
    expected = locality(resnet(), "layer1.0.conv1")
    for part in ("x", "y", "region", "a", "z"):
        assert tuple(node["node"] for node in found["locality"][part]) == getattr(expected, part)
        assert all(node["source"].startswith("resnet.py:") for node in found["locality"][part])
    assert [verdict["kind"] for verdict in found["verdicts"]] == ["exact", "exact"]


def test_groups_are_counted_by_verdict(invoke: Invoke) -> None:
    found, graph = json.loads(invoke("inspect", *RESNET, "--json").stdout), resnet()
    counts = {(row["kind"], row["code"]): row["groups"] for row in found["verdicts"]}
    verdicts = [verdict for space in graph.spaces.values() for verdict in space.verdicts]
    assert counts == Counter((verdict.kind, verdict.code) for verdict in verdicts)
    assert list(counts) == [("exact", ""), ("frozen", "model-output")]
    assert found["verdicts"][1]["suggestion"] == suggestion_for("model-output")
    last = invoke("inspect", *RESNET).stdout.rstrip().splitlines()[-1]
    assert last.split()[:3] == ["frozen", "model-output", "10"]
    assert last.endswith(suggestion_for("model-output"))


def test_explain(invoke: Invoke) -> None:
    graph = resnet()
    for name, found in (
        ("conv1", explain(graph, "conv1")),
        ("layer2.0.conv2:1", explain(graph, "layer2.0.conv2", 1)),
        ("fc:3", explain(graph, "fc", 3)),
    ):
        assert invoke("inspect", *RESNET, "--explain", name).stdout.strip() == str(found)
        plain = json.loads(invoke("inspect", *RESNET, "--explain", name, "--json").stdout)
        assert plain == found.to_json()
    assert "is no number of a channel group" in invoke("inspect", *RESNET, "--explain", "fc:x").stderr
    assert "no channel group 99" in invoke("inspect", *RESNET, "--explain", "fc:99").stderr
    assert "no channel space 'layer9'" in invoke("inspect", *RESNET, "--explain", "layer9").stderr


def test_ir(invoke: Invoke) -> None:
    text = print_graph(resnet())
    assert invoke("inspect", *RESNET, "--ir").stdout.strip() == text.strip()
    assert json.loads(invoke("inspect", *RESNET, "--ir", "--json").stdout) == {"ir": text}


def test_lines_are_the_models_and_never_the_command_lines(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom torchvision.models import AlexNet\n"
        "def build(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 10))\n"
        "def library(): return AlexNet(10)\n"
    )

    command = [sys.executable, "-m", "morphir", "inspect", "net.py:build", "--ir", "--image-size", "32"]
    assert " # " not in subprocess.check_output(command, cwd=tmp_path, text=True)
    library = invoke("inspect", tmp_path / "net.py:library", "--ir", "--image-size", 64)
    assert "# alexnet.py:" in library.stdout


def test_a_run_is_inspected_as_it_grew(invoke: Invoke, finished_run: Path) -> None:
    found = json.loads(invoke("inspect", finished_run, "--json").stdout)
    last = json.loads((finished_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {space["name"]: space["width"] for space in found["spaces"]} == last["next_widths"]


def test_bad_input(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("inspect", *RESNET, "--space", "layer9")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: there is no channel space 'layer9'" in result.stderr
    assert "image_size must be at least 1, got 0" in invoke("inspect", "vgg19", "--image-size", 0).stderr
    assert "there is no run in" in invoke("inspect", tmp_path).stderr
    assert "torchvision has no classifier 'resnet81'" in invoke("inspect", "torchvision:resnet81").stderr


def test_help_and_version(invoke: Invoke) -> None:
    assert invoke("--version").stdout.startswith("morphir ")
    for command in ("grow", "inspect", "export", "verify"):
        text = " ".join(invoke(command, "--help").stdout.split())
        assert f"morphir {command} " in text
