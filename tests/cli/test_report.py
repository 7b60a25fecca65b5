"""``morphir report``: the same file that ``grow`` leaves, from the run directory alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

Invoke = Callable[..., Result]


def test_grow_leaves_what_report_makes_again(invoke: Invoke, finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo.html"
    result = invoke("report", finished_run, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {out}\n"
    assert out.read_text() == (finished_run / "report.html").read_text()
    assert "<title>net.py:build, width 6 digits - MorphIR</title>" in out.read_text()


def test_the_run_directory_is_enough(invoke: Invoke, finished_run: Path, tmp_path: Path) -> None:
    """Without exports and checkpoints, and in another place."""
    run = tmp_path / "finished"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "checkpoints")
    for path in (*run.glob("network.*"), run / "report.html"):
        path.unlink()
    result = invoke("report", run)
    assert result.exit_code == 0, result.output
    assert (run / "report.html").read_text() == (finished_run / "report.html").read_text()


def test_a_folder_that_is_no_run(invoke: Invoke, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        result = invoke("report", place)
        assert result.exit_code == 1
        assert result.stderr.startswith(
            f"error: there is no run in {place}: it has no config.json\n  hint: name"
        )
        assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written(invoke: Invoke, finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = invoke("report", finished_run, "--out", tmp_path / "file" / "report.html")
    assert result.exit_code == 1
    assert "cannot write" in result.stderr and "hint:" in result.stderr
