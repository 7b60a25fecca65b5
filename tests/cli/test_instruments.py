"""The options that every command which runs passes has; and what docs/debugging.md types."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]
PAGE = Path(__file__).parent.parent.parent / "docs" / "debugging.md"
PLAIN, WALK = PAGE.read_text().split("## Finding a bug, step by step")
COMMANDS = re.findall(r"^morphir .*$", PLAIN, re.MULTILINE)


def verify(model_file: Path, *options: object) -> tuple[object, ...]:
    place = ("--channels", 1, "--image-size", 8, "--space", "conv1")
    return ("verify", f"{model_file}:build", *place, *options)


def test_printing_goes_to_standard_error_and_leaves_the_output_as_it_is(
    invoke: Invoke, model_file: Path
) -> None:
    plain = invoke(*verify(model_file))
    shown = invoke(*verify(model_file, "--print-ir-after", "split-channels", "--time-passes"))
    assert plain.exit_code == shown.exit_code == 0
    without_numbers = [re.sub(r"[\d.e-]+", "", result.stdout) for result in (plain, shown)]
    assert without_numbers[0] == without_numbers[1] and plain.stderr == ""
    assert "// ----- IR after split-channels -----" in shown.stderr
    assert "conv1: 5 groups" in shown.stderr and "// ----- time of passes -----" in shown.stderr


def test_a_difference_holds_what_changed_alone(invoke: Invoke, model_file: Path) -> None:
    shown = invoke(*verify(model_file, "--print-diff"))
    first = shown.stderr.split("// -----")[1]
    changed = [line for line in first.splitlines() if re.match(r"[-+] ", line)]
    assert changed and all("conv1" in line for line in changed)


def test_remarks_and_dumps(invoke: Invoke, model_file: Path, tmp_path: Path) -> None:
    shown = invoke(
        *verify(model_file, "--remarks", "applied", "--dump-dir", tmp_path / "ir", "--verify-each")
    )
    assert shown.exit_code == 0
    assert "split-channels: applied conv1[" in shown.stderr
    assert (tmp_path / "ir" / "0001-split-channels.ir").read_text().startswith("graph @net(")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--break-on", "line=3"), "there is no breakpoint 'line=3'"),
        (("--remarks", "applied,guessed"), "there are no remarks guessed"),
    ],
)
def test_bad_options_are_one_error(
    invoke: Invoke, model_file: Path, options: tuple[str, ...], message: str
) -> None:
    result = invoke(*verify(model_file, *options))
    assert result.exit_code == 1 and result.stderr.startswith(f"error: {message}")


def test_a_breakpoint_stops_where_pythonbreakpoint_says(
    invoke: Invoke, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[dict[str, object]] = []

    def stop() -> None:
        stops.append(dict(sys._getframe(1).f_locals))

    monkeypatch.setattr("sys.breakpointhook", stop)
    assert invoke(*verify(model_file, "--break-on", "space=conv1")).exit_code == 0
    assert [str(at["index_map"]).split(" [")[0] for at in stops] == ["conv1: 4 -> 5", "conv1: 4 -> 3"]
    assert all({"graph", "space", "morphism", "morphisms"} <= set(at) for at in stops)


def test_the_pages_walk_finds_the_bug(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in re.findall(r"```(?:python)?\n# (\S+)\n(.*?)```", WALK, re.DOTALL):
        Path(name).write_text(text)
    shown: dict[str, str] = {}
    for line in re.findall(r"^(?:python|morphir) .*$", WALK, re.MULTILINE):
        program, *arguments = shlex.split(line)
        if program == "morphir":
            result = invoke(*arguments)
            shown[line] = result.output
            assert result.exit_code == (1 if "find.txt" in line else 0), result.output
            continue
        path = os.pathsep.join([str(PAGE.parent.parent), *sys.path])
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        shown[line] = done.stdout + done.stderr
        assert done.returncode == (1 if "checked" in line else 0), shown[line]
    found = shown["morphir debug history --script find.txt"]
    assert "error: the oracle passes at the last point" in found
    (promised,) = re.findall(r"```\n(passes at .*?)```", WALK, re.DOTALL)
    assert promised in found and re.search(r"first differs at %head", found)
    look = shown["morphir debug history --script look.txt"]
    assert "channel 4: split (+) of 2, rewrite 4" in look and "widths conv2: 5 -> 7" in look
    checked = shown["python widen.py checked"]
    assert "failure-001: fails again in a fresh process" in checked
    assert re.search(
        r"VerificationError: rewrite 4 \(widen: .*\n(.*\n)*.*at: %head \(widen.py:\d+\)", checked
    )
    assert "it fails as it did" in shown["morphir reproduce failures/failure-001"]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_page_runs(
    line: str, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.breakpointhook", lambda: None)
    result = invoke(*shlex.split(line, comments=True)[1:])
    assert result.exit_code == 0, result.output
