"""The options that every command which runs passes has; and what docs/debugging.md types."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from morphir.cli.app import app
from morphir.cli.instruments import _OPTIONS, InspectableCommand
from terminal import Terminal

Invoke = Callable[..., Result]
PAGE = Path(__file__).parent.parent.parent / "docs" / "debugging.md"
PLAIN, WALK = PAGE.read_text().split("## Finding a bug, step by step")
DOCUMENTED = {
    option
    for row in PLAIN.split("## In a program")[0].splitlines()
    if row.startswith("| `--")
    for option in re.findall(r"`(--[a-z-]+)", row.split("|")[1])
}
COMMANDS = re.findall(r"^morphir .*$", PLAIN, re.MULTILINE)


def verify(model_file: Path, *options: object) -> tuple[object, ...]:
    place = ("--channels", 1, "--image-size", 8, "--space", "conv1")
    return ("verify", f"{model_file}:build", *place, *options)


def test_printing_goes_to_standard_error_and_leaves_the_output_as_it_is(
    invoke: Invoke, model_file: Path
) -> None:
    plain = invoke(*verify(model_file))
    shown = invoke(*verify(model_file, "--print-ir-after=split-channels", "--time-passes"))
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
    shown = invoke(*verify(model_file, "--remarks=applied", "--dump-dir", tmp_path / "ir", "--verify-each"))
    assert shown.exit_code == 0
    assert "split-channels: applied conv1[" in shown.stderr
    assert (tmp_path / "ir" / "0001-split-channels.ir").read_text().startswith("graph @net(")


@pytest.mark.parametrize("command", ["grow", "verify", "fidelity", "debug", "reproduce"])
def test_every_command_that_runs_passes_has_every_option(command: str) -> None:
    (found,) = (one for one in app.registered_commands if one.name == command)
    assert found.callback is not None and found.cls is InspectableCommand
    options = set(inspect.signature(found.callback).parameters)
    documented = {option.lstrip("-").replace("-", "_") for option in DOCUMENTED}
    assert documented == set(_OPTIONS) and documented <= options


def test_options_without_a_value_mean_all(invoke: Invoke, model_file: Path) -> None:
    for options in (("--print-ir-before", "--remarks"), ("--print-ir-before=all", "--remarks=all")):
        shown = invoke("verify", *options, *verify(model_file)[1:]).stderr
        for name in ("split-channels", "prune-channels"):
            assert f"// ----- IR before {name} -----" in shown and f"{name}: applied conv1[" in shown


def test_names_that_never_came_are_said(invoke: Invoke, model_file: Path) -> None:
    unmet = ("--print-ir-after=split", "--break-on", "space=conv9", "--break-on", "node=nowhere")
    shown = invoke(*verify(model_file, *unmet)).stderr.splitlines()
    assert "no pass 'split' ran; passes that did: split-channels, prune-channels" in shown
    assert "breakpoint space=conv9 was never met; of its kind there were: conv1" in shown
    assert any(line.startswith("breakpoint node=nowhere was never met; ") for line in shown)


def test_growing_under_every_instrument(
    invoke: Invoke,
    growing: Callable[..., tuple[object, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stops: list[str] = []
    monkeypatch.setattr("sys.breakpointhook", lambda: stops.append(sys._getframe(1).f_code.co_name))
    options = ("--print-ir-before", "--print-ir-after", "--print-changed", "--print-diff", "--verify-each")
    options += (
        "--verify-outputs",
        "--time-passes",
        "--remarks",
        "--break-on",
        "pass",
        "--break-on",
        "rewrite",
    )
    options += ("--dump-dir", str(tmp_path / "ir"), "--reproducer-dir", str(tmp_path / "failures"))
    result = invoke(*growing(tmp_path / "run", "--no-export", *options))
    assert result.exit_code == 0, result.output
    passes = ("split-channels", "prune-channels", "reexpress-batch-norm")
    for name in passes:
        for shown in ("IR before", "IR after", "difference made by"):
            assert f"// ----- {shown} {name} -----" in result.stderr
    assert stops.count("_stop_before_pass") == len(passes) and "_stop_before_rewrite" in stops
    assert min(path.name for path in (tmp_path / "ir").iterdir()) == "0000-start.ir"
    assert "// ----- time of passes -----" in result.stderr and not (tmp_path / "failures").exists()
    stored = json.loads((tmp_path / "run" / "remarks" / "phase-01.json").read_text())
    said = re.findall(r"^(?:selection|[a-z-]+): (applied|missed|refused) ", result.stderr, re.MULTILINE)
    kinds = Counter(remark["kind"] for remark in stored)
    assert kinds["missed"] and Counter(said) == kinds, "each remark that the run keeps is printed once"


def test_the_other_commands_under_instruments(invoke: Invoke, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "steps.txt").write_text("split conv1 0\n")
    options = ("--print-ir-after=split-channels", "--remarks")
    place = (f"{model_file}:build", "--channels", 1, "--image-size", 8)
    shell = invoke("debug", *place, "--script", tmp_path / "steps.txt", *options)
    few = ("--per-space", 1, "--train-epochs", 0, "--images", 32, "--limit", 64, "--learn", "batch")
    data = ("--data", "digits", "--device", "cpu", "--threads", 1, "--out", tmp_path / "fidelity")
    truth = invoke("fidelity", f"{model_file}:build", *few, "--score", "batch", *data, *options)
    for result in (shell, truth):
        assert result.exit_code == 0, result.output
        assert "// ----- IR after split-channels -----" in result.stderr
        assert "split-channels: applied conv1[" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--break-on", "line=3"), "there is no breakpoint 'line=3'"),
        (("--remarks=applied,guessed",), "there are no remarks guessed"),
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


def test_what_the_page_types_into_pdb_is_answered_as_it_shows(
    open_terminal: Callable[..., Terminal],
) -> None:
    pages = r"^(morphir [^\n]*--break-on[^\n]*)\n```\n\n```\n(\(Pdb\).*?)```"
    ((command, session),) = re.findall(pages, PLAIN, re.MULTILINE | re.DOTALL)
    pdb = open_terminal("-m", *shlex.split(command), PYTHONBREAKPOINT="pdb.set_trace")
    pdb.answer()
    asked = re.findall(r"^\(Pdb\) (.*)\n((?:(?!\(Pdb\)).*\n)*)", session, re.MULTILINE)
    assert [line for line, _ in asked] == ["p space", "p index_map", "bt"]
    for line, promised in asked:
        assert promised.strip() in pdb.ask(line)
    pdb.ask("c")  # the same space's prune comes next
    assert "2 ok, 0 refused, 0 failed" in pdb.end("c")


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_page_runs(
    line: str, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.breakpointhook", lambda: None)
    result = invoke(*shlex.split(line, comments=True)[1:])
    assert result.exit_code == 0, result.output
