"""``morphir verify``: one line per check, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from morphir.morphisms.base import Child
from morphir.morphisms.split import Split

Invoke = Callable[..., Result]


def options(model_file: Path) -> tuple[object, ...]:
    return ("verify", f"{model_file}:build", "--channels", 1, "--image-size", 8)


def test_a_good_model(invoke: Invoke, model_file: Path) -> None:
    result = invoke(*options(model_file))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["ok"] * 4 + ["refused"] * 2 + ["ok"] * 4
    assert lines[0].startswith("ok      split conv1, 1 group, difference ")
    assert "refused split head: channel of a model output at %" in result.stdout
    assert lines[-1] == "8 ok, 2 refused, 0 failed"


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


def test_a_run(invoke: Invoke, finished_run: Path) -> None:
    result = invoke("verify", finished_run, "--no-exports")
    assert result.exit_code == 0, result.output


def test_a_wrong_rewrite_fails(invoke: Invoke, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Split, "children", (Child(0.6, +1), Child(0.6, -1)))
    result = invoke(*options(model_file), "--no-exports")
    assert result.exit_code == 1
    line = next(line for line in result.stdout.splitlines() if "split conv1" in line)
    assert line.startswith("FAILED")
    assert "net.py:14" in line


def test_spaces_are_sampled(invoke: Invoke) -> None:
    result = invoke("verify", "resnet20", "--width", 4, "--image-size", 8, "--max-spaces", 2, "--no-exports")
    spaces = [line.split()[2].rstrip(",:") for line in result.stdout.splitlines() if " split " in line]
    assert spaces == ["conv1", "fc"]
