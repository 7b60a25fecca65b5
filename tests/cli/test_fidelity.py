"""``morphir fidelity`` on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from morphir.cli import runs
from morphir.cli.app import app
from morphir.errors import MorphirError

MODEL = """
from torch import nn

def build(classes: int, in_channels: int):
    return nn.Sequential(nn.Conv2d(in_channels, 3, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(3, classes))
"""


def test_writes_numbers_and_figures(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    options = ["--data", "digits", "--limit", "200", "--images", "64", "--per-space", "2", "--preset", "demo"]
    options += ["--learn", "batch", "--score", "batch", "--train-epochs", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["fidelity", f"{tmp_path / 'net.py'}:build", *options])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "out" / "morphisms.jsonl").read_text().splitlines()]
    assert [(line["learner"], *line["site"]) for line in lines] == [
        ("prune", "prune", "0", 0),
        ("prune", "prune", "0", 2),
        ("batch", "split", "0", 0),
        ("batch", "split", "0", 2),
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "morphisms.jsonl",
        "estimates-batch.svg",
        "gains.svg",
    }
    assert "sum over all splits" in result.output


def test_many_at_once(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    options = ["--data", "digits", "--limit", "200", "--images", "64", "--preset", "demo", "--many"]
    options += ["--train-epochs", "1", "--set", "lambda_parameters=0", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["fidelity", f"{tmp_path / 'net.py'}:build", *options])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "out" / "together.jsonl").read_text().splitlines()]
    assert [line["plan"] for line in lines] == ["all of it", "best factor", "backtracked"]
    assert "sum of estimates" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "gpu"), "'gpu' is not a device"),
        (("--device", "cuda:97"), "there is no device 'cuda:97' on this machine"),
        (("--seed", 10**23), "seed: Input should be less than or equal to"),
        (("--out", "file"), "cannot write file"),
    ],
)
def test_bad_input_is_one_error_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(MODEL)
    Path("file").write_text("mine")
    given = ["net.py:build", "--data", "digits", "--limit", "200", "--out", "out", *map(str, options)]
    result = CliRunner().invoke(app, ["fidelity", *given])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"error: {message}" in result.stderr or f"growth configuration: {message}" in result.stderr
    assert Path("file").read_text() == "mine"
    assert not Path("out").exists()


def test_an_unknown_curvature_is_one_error(tmp_path: Path) -> None:
    options = ["--data", "digits", "--learn", "cubic", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["fidelity", "vgg19", *options])
    assert result.exit_code == 1
    assert "there is no curvature 'cubic'" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [(), ("--download",)])
def test_data_is_fetched_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    asked: list[object] = []

    def load(name: str, directory: str, download: bool, *, limit: int | None) -> None:
        asked.append((name, directory, download, limit))
        raise MorphirError("no network here")

    monkeypatch.setattr(runs, "load", load)
    given = ["--data", "cifar10", "--data-dir", "files", "--limit", "9", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["fidelity", "vgg19", *given, *options])
    assert (result.exit_code, result.stderr) == (1, "error: no network here\n")
    assert asked == [("cifar10", "files", bool(options), 9)]


def test_a_seed_of_the_configuration_is_the_seed(tmp_path: Path) -> None:
    """The option wins, but that it is left out does not."""
    (tmp_path / "net.py").write_text(MODEL)
    options = ["--data", "digits", "--limit", "100", "--images", "64", "--preset", "demo", "--no-prunes"]
    options += ["--learn", "batch", "--score", "batch", "--train-epochs", "0", "--per-space", "1"]

    def measured(*more: str) -> str:
        out = tmp_path / "out"
        given = ["fidelity", f"{tmp_path / 'net.py'}:build", *options, *more, "--out", str(out)]
        assert CliRunner().invoke(app, given).exit_code == 0
        return (out / "morphisms.jsonl").read_text()

    assert measured("--set", "seed=3") == measured("--seed", "3") != measured()
