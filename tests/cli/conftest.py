"""The command line in process, a tiny model file, and one finished run that the tests share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from morphir.cli import app

Invoke = Callable[..., Result]

MODEL = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, in_channels, classes, width):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2)
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        stream = torch.relu(self.norm1(self.conv1(images)))
        return self.head(torch.relu(self.conv2(stream)).mean((2, 3)))


def build(in_channels=1, classes=10, width=4):
    return Net(in_channels, classes, width)


def seven_classes(in_channels=1):
    return Net(in_channels, 7, 4)


class Untraceable(Net):
    def forward(self, images):
        if images.sum() > 0:
            images = -images
        return super().forward(images)


def untraceable(in_channels=1, classes=10, width=4):
    return Untraceable(in_channels, classes, width)
"""

TINY = ("phases=1", "train_epochs=1", "learn_epochs=1", "final_epochs=2", "min_width=2", "batch_size=32")


def _invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def invoke() -> Invoke:
    return _invoke


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "net.py"
    path.write_text(MODEL)
    return path


def _growing(model_file: Path, out: Path, *more: object) -> tuple[object, ...]:
    """The arguments of the run that the tests share."""
    settings = [part for setting in TINY for part in ("--set", setting)]
    return (
        *("grow", "--model", f"{model_file}:build", "--width", 6, "--data", "digits", "--limit", 64),
        *("--preset", "demo", "--device", "cpu", "--threads", 1, "--out", out, *settings, *more),
    )


@pytest.fixture(scope="session")
def finished_run(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    result = _invoke(*_growing(model_file, out))
    torch.set_num_threads(1)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def growing(model_file: Path) -> Callable[..., tuple[object, ...]]:
    """``growing(out, *more)``: the arguments of the run that the tests share, with others added."""
    return partial(_growing, model_file)
