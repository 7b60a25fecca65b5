"""A run whose model file was edited or moved since: nothing is made of the wrong program."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]
COMMANDS = {
    "grow": ("--resume", "--out"),
    "export": ("--to", "pytorch"),
    "inspect": (),
    "verify": ("--max-spaces", 1, "--no-exports"),
    "debug": (),
    "fidelity": ("--data", "digits", "--limit", 64, "--out", "fidelity"),
}


@pytest.fixture
def run(finished_run: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a model file of its own, ``net.py`` beside it."""
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    name_model(run, Path(shutil.copy(model_file, tmp_path)))
    return run


def name_model(run: Path, file: Path) -> None:
    spec = json.loads((run / "run.json").read_text())
    spec["model"]["model"] = f"{file}:build"
    (run / "run.json").write_text(json.dumps(spec))


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_keys_with_another_program_are_refused(
    invoke: Invoke, run: Path, tmp_path: Path, command: str
) -> None:
    edit(tmp_path / "net.py", "self.head(torch.relu(", "self.head(torch.tanh(")
    before = (run / "network.py").read_bytes()
    result = invoke(command, *COMMANDS[command], run)
    assert result.exit_code == 1
    assert f"the run in {run} was started from another network" in result.stderr
    assert f"{tmp_path / 'net.py'}:build builds another one now" in result.stderr
    assert "hint: undo what changed in the model since then" in result.stderr
    assert (run / "network.py").read_bytes() == before


@pytest.mark.parametrize("command", COMMANDS)
def test_other_keys_are_refused(invoke: Invoke, run: Path, tmp_path: Path, command: str) -> None:
    edit(tmp_path / "net.py", "self.norm1 =", "self.more = nn.Linear(2, 2)\n        self.norm1 =")
    result = invoke(command, *COMMANDS[command], run)
    assert result.exit_code == 1
    assert f"the run in {run} was started from another network" in result.stderr


def test_a_moved_file_with_more_comments_is_the_same_model(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "net.py").rename(tmp_path / "elsewhere" / "model.py")
    result = invoke("export", run, "--to", "pytorch", "--out", tmp_path / "grown.py")
    assert result.exit_code == 1
    assert f"the model file of the run in {run} is gone: {tmp_path / 'net.py'}" in result.stderr
    assert f"hint: put it back, or write its new place into {run / 'run.json'}, under model" in result.stderr
    edit(moved, "    def forward", "    # what it computes\n    def forward")
    name_model(run, moved)
    result = invoke("export", run, "--to", "pytorch", "--out", tmp_path / "grown.py")
    assert result.exit_code == 0, result.stderr
