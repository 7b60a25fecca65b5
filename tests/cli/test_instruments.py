"""The options that every command which runs passes has; and what docs/debugging.md types."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]
PAGE = Path(__file__).parent.parent.parent / "docs" / "debugging.md"
COMMANDS = re.findall(r"^morphir .*$", PAGE.read_text(), re.MULTILINE)


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


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_page_runs(
    line: str, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.breakpointhook", lambda: None)
    result = invoke(*shlex.split(line, comments=True)[1:])
    assert result.exit_code == 0, result.output
