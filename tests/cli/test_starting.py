"""``grow --force``: an old run goes when the new one has started, and nothing else ever does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from morphir.cli import grow as command
from morphir.cli.starting import _OF_A_RUN, check_free
from morphir.runtime.growing import growth

Invoke = Callable[..., Result]
Growing = Callable[..., tuple[object, ...]]


@pytest.fixture
def old(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_an_old_run_is_replaced(invoke: Invoke, growing: Growing, old: Path, tmp_path: Path) -> None:
    (old / ".config.json.tmp").touch()  # a killed writer's
    result = invoke(*growing(old, "--force", "--set", "seed=1", "--no-export"))
    assert result.exit_code == 0, result.stderr
    assert '"seed": 1' in (old / "config.json").read_text()
    assert not (old / "network.py").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_all_that_a_run_writes_is_known(finished_run: Path) -> None:
    assert {path.name for path in finished_run.iterdir()} <= _OF_A_RUN
    check_free(finished_run, force=True)


def test_a_link_to_a_run(invoke: Invoke, growing: Growing, old: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(old)
    result = invoke(*growing(tmp_path / "link", "--force", "--set", "seed=1"))
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "link").readlink() == old
    assert '"seed": 1' in (old / "config.json").read_text()


def test_the_working_directory(
    invoke: Invoke, growing: Growing, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(old)
    assert invoke(*growing(".", "--force", "--set", "seed=1")).exit_code == 0
    assert '"seed": 1' in (old / "config.json").read_text()


@pytest.mark.parametrize("name", ["notes.md", "more/run.json", "xreport.html"])
def test_what_no_run_writes_is_kept(invoke: Invoke, growing: Growing, old: Path, name: str) -> None:
    (old / name).parent.mkdir(exist_ok=True)
    (old / name).write_text("mine")
    before = contents(old)
    result = invoke(*growing(old, "--force"))
    assert result.exit_code == 1
    assert f"{old} holds more than a run: {name.partition('/')[0]}" in result.stderr
    assert "hint: --force deletes the whole directory: move these elsewhere first" in result.stderr
    assert contents(old) == before


def test_what_is_no_run_is_kept(invoke: Invoke, growing: Growing, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    result = invoke(*growing(tmp_path, "--force"))
    assert f"{tmp_path} is there and not empty" in result.stderr
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--data", "digit"), ("--model", "vgg91"), ("--device", "gpu"), ("--set", "phases=-1")],
)
def test_bad_input_costs_no_run(
    invoke: Invoke, growing: Growing, old: Path, tmp_path: Path, option: str, value: str
) -> None:
    before = contents(old)
    assert invoke(*growing(old, "--force", option, value)).exit_code == 1
    assert contents(old) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (OSError("no space"), 1)])
@pytest.mark.parametrize("place", ["none", "empty", "old"])
def test_a_run_that_does_not_start_leaves_things_as_they_were(
    invoke: Invoke,
    growing: Growing,
    old: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Any,
    code: int,
) -> None:
    def fail(*_: object) -> None:
        raise error

    out = old if place == "old" else tmp_path / place
    if place == "empty":
        out.mkdir()
    monkeypatch.setattr(growth, "save_state", fail)  # all else of the run directory is there by then
    before = contents(tmp_path)
    result = invoke(*growing(out, "--force"))
    assert result.exit_code == code
    assert contents(tmp_path) == before
    assert out.exists() == (place != "none")
    assert "--resume" not in result.stderr


def test_a_run_that_was_killed_while_it_replaced_another(
    invoke: Invoke, growing: Growing, old: Path, tmp_path: Path
) -> None:
    shutil.copytree(old, tmp_path / "run.replaced")
    result = invoke(*growing(old, "--force"))
    assert result.exit_code == 1
    assert f"{tmp_path / 'run.replaced'} is there" in result.stderr
    assert f"hint: it is the old run: move it back to {old}, or delete it" in result.stderr
    assert contents(old) == contents(tmp_path / "run.replaced")


def test_a_run_that_was_killed_before_it_started_is_one(
    invoke: Invoke, growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: Any, out: Path, **__: Any) -> None:
        assert [path.name for path in out.iterdir()] == ["run.json"]
        shutil.copytree(out, tmp_path / "killed")
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "grow", look)
    invoke(*growing(tmp_path / "run"))
    monkeypatch.undo()
    killed = tmp_path / "killed"
    result = invoke("grow", "--out", killed, "--resume")
    assert f"the run in {killed} was killed before it started" in result.stderr
    assert "hint: start it again, with --force" in result.stderr
    assert invoke(*growing(killed, "--force", "--no-export")).exit_code == 0
