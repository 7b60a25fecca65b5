"""``morphir debug``: every command of the shell, against computations of its own; bad input; scripts."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner, Result

import morphir
from morphir.cli import app
from morphir.cli.debug import resolve_model
from morphir.cli.models import ModelSpec
from morphir.cli.runs import load_network
from morphir.cli.shell import Shell
from morphir.ir.graph import Graph
from morphir.runtime.history.session import Session
from morphir.runtime.oracle.zeroing import run_deterministic

Invoke = Callable[..., Result]
REWRITES = ("split conv1 2", "split conv1 3", "prune conv2 0")


def fresh(model_file: Path) -> Graph:
    return ModelSpec(model=f"{model_file}:build", channels=1, image_size=8).trace().eval()


def debug(model_file: Path, *lines: str) -> Result:
    place = ["debug", f"{model_file}:build", "--channels", "1", "--image-size", "8"]
    return CliRunner().invoke(app, place, input="\n".join([*REWRITES, *lines]))


def answer(result: Result, line: str) -> str:
    """Returns what the shell printed for the last of these lines."""
    return result.stdout.rpartition(f"(morphir) {line}\n")[2].partition("(morphir) ")[0].strip()


def test_stepping_printing_and_differences(model_file: Path) -> None:
    steps = ("list", "goto 1", "back", "next", "print conv2", "print", "diff 0 2", "where")
    result = debug(model_file, *steps)
    assert result.exit_code == 0, result.output
    assert re.findall(r"#\d", answer(result, "list")) == ["#0", "#1", "#2", "#3"]
    assert answer(result, "goto 1").startswith("point 1 of 3: #1 split-channels: rewrite 1, ")
    assert answer(result, "back").startswith("point 0 of 3: #0 start")
    assert answer(result, "next") == answer(result, "goto 1") == answer(result, "where")
    graph = fresh(model_file)
    first = morphir.print_graph(graph).splitlines()
    morphir.transform(graph, [morphir.Split("conv1", 2)])
    assert answer(result, "print") == morphir.print_graph(graph).strip()
    assert answer(result, "print conv2") in [line.strip() for line in answer(result, "print").splitlines()]
    morphir.transform(graph, [morphir.Split("conv1", 3)])
    second = morphir.print_graph(graph).splitlines()
    difference = answer(result, "diff 0 2").splitlines()
    assert [line[1:] for line in difference if re.match(r"\+ ", line)] == [
        x for x in second if x not in first
    ]
    assert [line[1:] for line in difference if re.match(r"- ", line)] == [x for x in first if x not in second]
    assert "widths conv1: 4 -> 6; " in difference[-1]


def test_spaces_localities_explanations_and_remarks(model_file: Path) -> None:
    result = debug(
        model_file, "space conv1", "locality conv1", "explain conv1 0", "remarks", "goto 0", "remarks"
    )
    graph = fresh(model_file)
    for morphism in (morphir.Split("conv1", 2), morphir.Split("conv1", 3), morphir.Prune("conv2", 0)):
        remarks = morphir.transform(graph, [morphism]).remarks
    assert answer(result, "space conv1").splitlines()[0] == repr(graph.space("conv1"))
    assert len(answer(result, "space conv1").splitlines()) == 1 + graph.space("conv1").width
    shown, wanted = answer(result, "locality conv1"), str(morphir.locality(graph, "conv1"))
    # an input's line is the one that called the tracer
    assert [x for x in shown.splitlines() if "%images" not in x] == [
        x for x in wanted.splitlines() if "%images" not in x
    ]
    assert answer(result, "explain conv1 0") == str(morphir.explain(graph, "conv1", 0))
    assert str(remarks[0]).splitlines()[0] in result.stdout and answer(result, "remarks") == "no remarks"


def test_lineage_in_words(model_file: Path) -> None:
    result = debug(model_file, "lineage conv1 4", "lineage conv2 0", "lineage conv1 0")
    assert answer(result, "lineage conv1 4").splitlines() == [
        "channel 4: split (-) of 3, rewrite 2",
        "channel 3: split (-) of 2, rewrite 1",
        "channel 2: channel 2 of the start",
    ]
    assert answer(result, "lineage conv2 0") == "channel 0: channel 1 of the start"
    assert answer(result, "lineage conv1 0") == "channel 0: channel 0 of the start"


def test_running_and_bisecting(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text("def narrow(graph):\n    return graph.spaces['conv1'].width < 6\n")
    oracle = f"bisect {tmp_path / 'check.py'}:narrow"
    lines = ("run", "bisect difference", "bisect difference 1e9", oracle, "goto 2", "run")
    result = debug(model_file, *lines)
    assert "error: the oracle passes at the last point" in result.stderr and result.exit_code == 1
    shown = answer(result, "bisect difference")
    assert shown.startswith("passes at point 2, fails at point 3 ") and "%head (net.py:" in shown
    assert answer(result, oracle).startswith("passes at point 1, fails at point 2 ")
    found = re.findall(
        r"point 3 against point 2: max difference (\S+) absolute, (\S+) relative", result.stdout
    )
    assert float(found[0][0]) > 1e-4
    still = re.search(r"point 2 against point 1: max difference (\S+) absolute", answer(result, "run"))
    assert still and float(still[1]) < 1e-6


def test_the_difference_is_that_of_two_runs(model_file: Path, tmp_path: Path) -> None:
    graph = fresh(model_file)
    session = Session.of_graph(graph, tmp_path / "history")
    session.transform([morphir.Prune("conv2", 0)])
    inputs = torch.randn(3, 1, 8, 8)
    found = session.compare(0, 1, ((inputs,), {}))
    after = run_deterministic(session.graph, ((inputs,), {}), training=False, seed=0)[0]
    session.back()
    before = run_deterministic(session.graph, ((inputs,), {}), training=False, seed=0)[0]
    assert found.absolute == pytest.approx(float((after.double() - before.double()).abs().max()), rel=1e-6)


def test_exporting_a_point(model_file: Path, tmp_path: Path) -> None:
    result = debug(model_file, "goto 1", f"export {tmp_path / 'net.py'}")
    assert result.exit_code == 0 and "wrote" in result.stdout
    assert "nn.Conv2d(1, 5, 3" in (tmp_path / "net.py").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("goto 99", "there is no point 99"),
        ("goto x", "'x' is no number"),
        ("goto", "goto takes other arguments: none given"),
        ("next", "point 3 is the last one"),
        ("dance", "there is no command 'dance'"),
        ("print %nowhere", "there is no node %nowhere"),
        ("space nowhere", "there is no channel space 'nowhere'"),
        ("locality nowhere", "there is no channel space 'nowhere'"),
        ("explain conv1 77", "space 'conv1' has no channel group 77"),
        ("lineage conv1", "lineage takes other arguments: 1 given"),
        ("lineage conv1 77", "space 'conv1' has no channel group 77"),
        ("split conv1 77", "space 'conv1' has no channel group 77"),
        ("prune head 0", "cannot prune head[0]: it is frozen"),
        ("run backwards", "cannot run on 'backwards'"),
        ("run data", "there is no data here"),
        ("bisect luck", "there is no oracle 'luck'"),
        ("bisect difference much", "'much' is no tolerance"),
        ("bisect verifier 3", "verifier takes no tolerance"),
        ("bisect nowhere.py:check", "oracle file 'nowhere.py' does not exist"),
        ("export net.txt", "net.txt is no file to export to"),
        ("diff 0 'x", 'cannot read "0 \'x"'),
    ],
)
def test_bad_input_is_one_error_and_loses_nothing(
    shell: Shell, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    session = shell.session
    before, text = session.position, morphir.print_graph(session.graph)
    shell.failures = 0
    assert shell.onecmd(line) is False
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("error:") == 1
    assert (session.position, session.last, morphir.print_graph(session.graph)) == (before, 3, text)
    assert shell.failures == 1


@pytest.fixture(scope="module")
def shell(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    made = Shell(Session.of_graph(fresh(model_file), tmp_path_factory.mktemp("shell") / "history"))
    for line in REWRITES:
        made.onecmd(line)
    return made


def test_names_are_completed(shell: Shell) -> None:
    assert shell.complete_lineage("conv") == ["conv1", "conv2"]
    assert shell.complete_bisect("v") == ["verifier"]
    assert "relu" in shell.complete_print("re")
    assert shell.complete_goto("e") == ["end"] and shell.complete_run("") == ["data"]
    assert set(shell.completenames("l")) == {"list ", "lineage ", "locality "}
    assert "EOF" not in " ".join(shell.get_names())


def test_rewriting_is_for_the_last_point(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.onecmd("goto 1")
    shell.onecmd("split conv1 0")
    shell.onecmd("goto end")
    assert "point 1 is not the last one" in capsys.readouterr().err and shell.session.last == 3


def test_every_command_has_help(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.stdout = sys.stdout
    for name in (n.removeprefix("do_") for n in shell.get_names() if n.startswith("do_")):
        shell.onecmd(f"help {name}")
    assert "No help" not in capsys.readouterr().out


def test_a_run_has_a_history(invoke: Invoke, finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "steps.txt").write_text("list\ngoto end\nrun data\nprint\nquit\nnever\n")
    result = invoke("debug", finished_run, "--script", tmp_path / "steps.txt")
    assert result.exit_code == 0, result.output
    actions = answer(result, "list").splitlines()
    assert any("(phase 1): rewrite 1" in line for line in actions) and "training" in actions[-1]
    session = Session.open(finished_run, resolve=resolve_model)
    session.goto(session.last)
    network = load_network(finished_run)
    assert all(torch.equal(network.state_dict()[k], v) for k, v in session.graph.state_dict().items())
    assert answer(result, "print") == morphir.print_graph(network).strip()
    assert "max difference" in answer(result, "run data")
    session.goto(0)
    assert morphir.print_graph(session.graph) == (finished_run / "ir" / "phase-00.txt").read_text()


def test_a_run_that_the_library_made(invoke: Invoke, model_file: Path, tmp_path: Path) -> None:
    """It has no ``run.json``: nothing names its model, whose source the history has instead."""
    graph = fresh(model_file).train()
    classes = graph(torch.randn(16, 1, 8, 8)).shape[1]
    batches = [(torch.randn(16, 1, 8, 8), torch.randint(classes, (16,))) for _ in range(2)]
    settings = {"phases": 1, "train_epochs": 1, "learn_epochs": 1, "final_epochs": 1, "min_width": 2}
    config = morphir.GrowthConfig.preset("demo", device="cpu", **settings)
    result = morphir.grow(graph, batches, cross_entropy, config=config, out=tmp_path / "run", quiet=True)
    script = tmp_path / "steps.txt"
    script.write_text("goto end\nprint\n")
    shown = invoke("debug", tmp_path / "run", "--script", script)
    assert shown.exit_code == 0, shown.output
    printed, own = (
        re.sub(r" +#.*", "", text) for text in (answer(shown, "print"), morphir.print_graph(result.graph))
    )
    assert printed == own.strip()


def test_what_cannot_be_opened_is_one_error(invoke: Invoke, finished_run: Path, tmp_path: Path) -> None:
    assert invoke("debug", finished_run, "--history", tmp_path).stderr.startswith(
        "error: --history is for models"
    )
    assert "cannot read" in invoke("debug", finished_run, "--script", tmp_path / "none").stderr


def test_stopping_after_a_rewrite(
    invoke: Invoke, growing: Callable[..., tuple[object, ...]], tmp_path: Path
) -> None:
    result = invoke(*growing(tmp_path / "run", "--stop-after-rewrite", 1, "--quiet"))
    assert result.exit_code == 0 and "stopped after rewrite #1" in result.stderr
    session = Session.open(tmp_path / "run", resolve=resolve_model)
    assert session.actions[-1].rewrite and session.actions[-1].rewrite.number == 1
    resumed = invoke("grow", "--out", tmp_path / "run", "--resume", "--quiet", "--no-export")
    assert resumed.exit_code == 0, resumed.output
    again = Session.open(tmp_path / "run", resolve=resolve_model)
    again.goto(again.last)
    assert len([a for a in again.actions if a.rewrite]) == len(again.graph.history)
    network = load_network(tmp_path / "run")
    assert all(torch.equal(network.state_dict()[k], v) for k, v in again.graph.state_dict().items())


def test_a_rewrite_that_never_comes_is_an_error(invoke: Invoke, model_file: Path) -> None:
    place = ("verify", f"{model_file}:build", "--channels", 1, "--image-size", 8, "--space", "conv1")
    assert "there was no rewrite 50" in invoke(*place, "--stop-after-rewrite", 50).stderr
    assert "stopped after rewrite #1" in invoke(*place, "--stop-after-rewrite", 1).stderr


def test_a_reproducer_that_is_not_there(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("reproduce", tmp_path / "nosuch")
    assert result.exit_code == 1
    assert f"error: there is no reproducer in {tmp_path / 'nosuch'}" in result.stderr
    assert "hint: name a folder that --reproducer-dir wrote" in result.stderr


def test_a_reproducer_on_the_command_line(
    invoke: Invoke, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verifier that fails in this process alone: the reproducer says that it does not fail again."""

    def broken(graph: Graph) -> None:
        raise morphir.MorphirError("planted", node="conv1")

    monkeypatch.setattr("passes.manager.verify", broken)
    place = ("verify", f"{model_file}:build", "--channels", 1, "--image-size", 8, "--space", "conv1")
    result = invoke(*place, "--reproducer-dir", tmp_path / "failures")
    assert "does not reproduce: nothing fails in a fresh process" in result.stderr
    again = invoke("reproduce", tmp_path / "failures" / "failure-001")  # the verifier is broken here, too
    assert again.exit_code == 0 and "it fails as it did" in again.stdout
    monkeypatch.undo()
    honest = invoke("reproduce", tmp_path / "failures" / "failure-001")
    assert honest.exit_code == 1 and "it does NOT reproduce" in honest.stdout
    assert not (tmp_path / "failures" / "failure-001" / "model.py").exists()
