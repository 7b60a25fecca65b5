"""``morphir verify``: one line per check, and the exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from morphir.ir.codes import suggestion_for
from morphir.morphisms.base import Child
from morphir.morphisms.split import Split

Invoke = Callable[..., Result]


def options(model_file: Path) -> tuple[object, ...]:
    return ("verify", f"{model_file}:build", "--channels", 1, "--image-size", 8)


def cells(result: Result) -> dict[str, list[str]]:
    """Returns the table: site to what stands after it, split where columns are."""
    rows = [re.split(r"\s{2,}", line) for line in result.stdout.split("\n\n")[0].splitlines()]
    return {site: rest for site, *rest in rows if site}


def test_a_good_model(invoke: Invoke, model_file: Path) -> None:
    result = invoke(*options(model_file))
    assert result.exit_code == 0, result.output
    table = cells(result)
    assert list(table) == [
        *("space", "conv1", "conv2", "head"),
        *("plan", "export-pytorch", "retrace", "export-onnx"),
    ]
    assert table["space"] == ["groups", "split", "prune"]
    for space in ("conv1", "conv2"):
        groups, split, prune = table[space]
        assert groups == "4" and split.startswith("ok ") and prune.startswith("ok ")
        assert split.endswith("(1)") and prune.endswith("(1)")
    assert table["head"][:3] == ["10", "refused", "refused"]
    assert table["head"][3].startswith("channel of a model output [model-output] at %")
    assert [table[site][0] for site in ("export-pytorch", "retrace", "export-onnx")] == ["ok"] * 3
    assert result.stdout.splitlines()[-4:] == [
        "refused",
        "  model-output: head",
        f"    hint: {suggestion_for('model-output')}",
        "8 ok, 2 refused, 0 failed",
    ]
    assert result.stderr == ""


def test_json(invoke: Invoke, model_file: Path) -> None:
    found = json.loads(invoke(*options(model_file), "--no-exports", "--json").stdout)
    assert found["summary"] == {"ok": 5, "refused": 2, "failed": 0}
    assert [check["space"] for check in found["checks"]] == [
        *("conv1",) * 2,
        *("conv2",) * 2,
        "head",
        "head",
        None,
    ]
    assert all(check["difference"] < 1e-10 for check in found["checks"] if check["outcome"] == "ok")
    refused = [check for check in found["checks"] if check["outcome"] == "refused"]
    assert {(check["code"], check["suggestion"]) for check in refused} == {
        ("model-output", suggestion_for("model-output"))
    }


def test_a_run(invoke: Invoke, finished_run: Path) -> None:
    result = invoke("verify", finished_run, "--no-exports")
    assert result.exit_code == 0, result.output


def test_a_wrong_rewrite_fails(invoke: Invoke, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Split, "children", (Child(0.6, +1), Child(0.6, -1)))
    result = invoke(*options(model_file), "--no-exports")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("conv1 "))
    assert lines[at].split()[1:3] == ["4", "FAILED"]
    assert lines[at + 1].startswith("    split: outputs differ by ")
    assert lines[at + 1].endswith("at %conv1 (net.py:14)")


def test_one_space_alone(invoke: Invoke, model_file: Path) -> None:
    result = invoke(*options(model_file), "--space", "conv2", "--space", "head")
    assert (result.exit_code, list(cells(result))) == (0, ["space", "conv2", "head"])
    assert result.stdout.splitlines()[-1] == "2 ok, 2 refused, 0 failed"
    wrong = invoke(*options(model_file), "--space", "conv9")
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert "there is no channel space 'conv9'" in wrong.stderr


def test_spaces_are_sampled(invoke: Invoke) -> None:
    result = invoke("verify", "resnet20", "--width", 4, "--image-size", 8, "--max-spaces", 2, "--no-exports")
    assert list(cells(result)) == ["space", "conv1", "fc", "plan"]


def test_a_model_without_channels_says_so(invoke: Invoke, tmp_path: Path) -> None:
    source = "from torch import nn\n\n\ndef build() -> nn.Module:\n    return nn.Sequential(nn.ReLU())\n"
    (tmp_path / "plain.py").write_text(source)
    result = invoke(*options(tmp_path / "plain.py"))
    assert result.exit_code == 0, result.output
    assert "no channel space: there is nothing to split or prune" in result.stdout
