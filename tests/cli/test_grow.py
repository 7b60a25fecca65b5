"""``morphir grow``: what a run leaves, resuming, and every bad input with its one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from morphir.cli import grow as command
from morphir.runtime.growing.events import EpochEnded

Invoke = Callable[..., Result]
Growing = Callable[..., tuple[object, ...]]


def assert_error(result: Any, *parts: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def test_a_run_leaves_everything(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert names >= {"config.json", "run.json", "metrics.jsonl", "checkpoints", "ir", "history"}
    assert names >= {"program.json", "scores", "remarks", "report.html"}
    assert names >= {"widths.svg", "network.py", "network.safetensors", "network.onnx"}
    assert (finished_run / "ir" / "phase-00.txt").read_text().startswith("graph @")
    phases = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    grown = [line for line in phases if line["kind"] == "phase"]
    weights = load_file(finished_run / "network.safetensors")
    parameters = sum(t.numel() for key, t in weights.items() if "running" not in key and "num_" not in key)
    assert grown[-1]["next_parameters"] == parameters


def test_summary_compares_seed_and_grown(invoke: Invoke, finished_run: Path) -> None:
    result = invoke("grow", "--out", finished_run, "--resume", "--no-export")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    seed, grown = (next(line for line in lines if line[:1] == [name]) for name in ("seed", "grown"))
    metrics = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    phases = [line for line in metrics if line["kind"] == "phase"]
    assert int(seed[1].replace(",", "")) == phases[0]["parameters"]
    assert int(grown[1].replace(",", "")) == phases[-1]["next_parameters"]


def test_interrupted_and_resumed_is_uninterrupted(
    invoke: Invoke, growing: Growing, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    grow = command.grow

    def interrupting(*args: Any, callbacks: tuple[Any, ...], **options: Any) -> Any:
        def interrupt(event: object) -> None:
            if isinstance(event, EpochEnded) and event.slot.index == 2:
                raise KeyboardInterrupt

        return grow(*args, callbacks=(*callbacks, interrupt), **options)

    monkeypatch.setattr(command, "grow", interrupting)
    result = invoke(*growing(out))
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == f"continue with: morphir grow --out {out} --resume"
    monkeypatch.undo()
    result = invoke("grow", "--out", out, "--resume")
    assert result.exit_code == 0, result.stderr
    wanted, found = (load_file(place / "network.safetensors") for place in (finished_run, out))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    for name in ("program.json", "scores/phase-01.json", "remarks/phase-01.json"):
        assert (out / name).read_bytes() == (finished_run / name).read_bytes()


def test_an_existing_run_is_kept(invoke: Invoke, growing: Growing, finished_run: Path) -> None:
    before = sorted(path.name for path in finished_run.rglob("*"))
    assert_error(invoke(*growing(finished_run)), "not empty", "hint:", "--resume")
    assert sorted(path.name for path in finished_run.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--model", "vgg91", "--data", "digits"), ("unknown model 'vgg91'", "did you mean vgg19")),
        (("--model", "vgg19", "--data", "digit"), ("unknown dataset 'digit'", "did you mean digits")),
        (("--model", "vgg19", "--data", "cifar10"), ("cifar10 needs a data directory", "--data-dir")),
        (
            ("--model", "vgg19", "--data", "fashion-mnist", "--data-dir", "/nowhere"),
            ("'/nowhere' does not exist", "--download"),
        ),
        (
            ("--model", "vgg19", "--data", "digits", "--preset", "desktop"),
            ("there is no preset 'desktop'", "laptop"),
        ),
        (
            ("--model", "vgg19", "--data", "digits", "--set", "fases=3"),
            ("there is no option 'fases'", "did you mean phases"),
        ),
        (("--model", "vgg19", "--data", "digits", "--set", "phases"), ("not of the form key=value",)),
        (("--model", "vgg19", "--data", "digits", "--set", "phases=-1"), ("phases", "got -1")),
        (("--model", "vgg19", "--data", "digits", "--device", "gpu"), ("'gpu' is not a device",)),
        (("--model", "vgg19", "--data", "digits", "--limit", "1"), ("limit must be at least 2",)),
        (("--model", "vgg19"), ("needs --model and --data",)),
        (("--resume",), ("there is no run in",)),
        (
            ("--model", "vgg19", "--width", "2", "--data", "digits", "--keep", "feature.0"),
            ("no channel space is called 'feature.0'", "did you mean features.0"),
        ),
        (("--resume", "--seed", "3", "--model", "vgg19"), ("--model, --seed cannot be changed",)),
    ],
)
def test_bad_input(invoke: Invoke, tmp_path: Path, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    assert_error(invoke("grow", "--out", out, *options), *parts)
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_cuda_device_that_is_not_there(invoke: Invoke, growing: Growing, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = invoke(*growing(out, "--device", "cuda"))
    assert_error(result, "there is no device 'cuda' on this machine", "available: cpu")
    assert not out.exists()


def test_a_model_that_cannot_be_traced_names_the_line(
    invoke: Invoke, model_file: Path, tmp_path: Path
) -> None:
    line = 1 + model_file.read_text().splitlines().index("        if images.sum() > 0:")
    out = tmp_path / "run"
    result = invoke("grow", "--model", f"{model_file}:untraceable", "--data", "digits", "--out", out)
    assert_error(result, "cannot trace", f"net.py:{line}", "hint:")
    assert not out.exists()


def test_wrong_number_of_classes(invoke: Invoke, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = invoke("grow", "--model", f"{model_file}:seven_classes", "--data", "digits", "--out", out)
    assert_error(result, "wrong number of classes", "yields 7, the data has 10")
    assert not out.exists()


def test_debug_lets_the_exception_through(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("--debug", "grow", "--model", "vgg91", "--data", "digits", "--out", tmp_path / "run")
    assert "unknown model" in str(result.exception)
