"""The report's data against the run's own files, value by value."""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from morphir.errors import MorphirError
from morphir.report import gather, write_report
from morphir.runtime.storage.metrics import read_metrics


@pytest.fixture(scope="module")
def data(run_path: Path) -> dict[str, Any]:
    return json.loads(json.dumps(gather(run_path), allow_nan=False))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def texts(data: dict[str, Any], numbers: list[int]) -> list[str]:
    return [data["strings"][number] for number in numbers]


def test_the_run_splits_and_prunes(run_path: Path) -> None:
    """What the other tests look at has to be there."""
    phases = read_metrics(run_path / "metrics.jsonl", "phase")
    assert sum(phase["splits"] for phase in phases) > 2
    assert sum(phase["prunes"] for phase in phases) > 0


def test_epochs_and_phases_are_those_of_the_metrics(data: dict[str, Any], run_path: Path) -> None:
    epochs = read_metrics(run_path / "metrics.jsonl", "epoch")
    assert data["planned_epochs"] == len(epochs) == 13
    for column, values in data["epochs"].items():
        assert values == [epoch[column] for epoch in epochs]
    phases = read_metrics(run_path / "metrics.jsonl", "phase")
    for shown, phase in zip(data["phases"], phases, strict=True):
        assert shown.items() <= phase.items()
        assert {"parameters", "macs", "next_parameters", "test_error", "splits"} <= shown.keys()


def test_widths_are_those_of_the_metrics(data: dict[str, Any], run_path: Path) -> None:
    grown = [p for p in read_metrics(run_path / "metrics.jsonl", "phase") if p["stage"] == "grow"]
    names = [space["name"] for space in data["program"]["spaces"]]
    wanted = [[phase["widths"][name] for name in names] for phase in grown]
    wanted.append([grown[-1]["next_widths"][name] for name in names])
    assert [position["widths"] for position in data["positions"]] == wanted


def test_scores_are_those_of_the_files(data: dict[str, Any], run_path: Path) -> None:
    for phase, position in enumerate(data["positions"][:-1], 1):
        saved = read(run_path / "scores" / f"phase-{phase:02d}.json")
        assert position["scores"].keys() == saved["spaces"].keys()
        for space, kinds in saved["spaces"].items():
            for kind, columns in kinds.items():
                shown = position["scores"][space][kind]
                assert shown["groups"] == columns["groups"]
                assert shown["loss"] == pytest.approx(columns["delta_loss"], rel=1e-3)
                for ours, theirs in (("parameters", "delta_parameters"), ("macs", "delta_macs")):
                    whole = (
                        shown[ours] if isinstance(shown[ours], list) else [shown[ours]] * len(columns[theirs])
                    )
                    assert whole == columns[theirs]


def test_applied_scores_are_the_applied_remarks_and_the_rewrites(
    data: dict[str, Any], run_path: Path
) -> None:
    numbers: list[int] = []
    for phase, position in enumerate(data["positions"][:-1], 1):
        saved = read(run_path / "scores" / f"phase-{phase:02d}.json")
        applied = {
            (kind, space, index)
            for space, kinds in saved["spaces"].items()
            for kind, columns in kinds.items()
            for index in columns["applied"]
        }
        phases = read_metrics(run_path / "metrics.jsonl", "phase")
        assert len(applied) == phases[phase - 1]["splits"] + phases[phase - 1]["prunes"]
        remarks = read(run_path / "remarks" / f"phase-{phase:02d}.json")
        said = {(r["code"], r["space"]) for r in remarks if r["code"] in ("split", "prune")}
        assert said == {(kind, space) for kind, space, _ in applied}
        numbers += [rewrite["number"] for rewrite in position["rewrites"]]
    lines = (run_path / "history" / "actions.jsonl").read_text().splitlines()
    actions = [action for action in map(json.loads, lines) if action["rewrite"]]
    assert numbers == [action["rewrite"]["number"] for action in actions]
    rewrites = [rewrite for position in data["positions"][:-1] for rewrite in position["rewrites"]]
    for action, rewrite in zip(actions, rewrites, strict=True):
        assert action["difference"]
        assert [data["strings"][at] for at in rewrite["diff"]] == action["difference"]


def test_every_remark_comes_back_whole(data: dict[str, Any], run_path: Path) -> None:
    names = ("kind", "code", "space", "node", "source", "suggestion", "message")
    for phase, position in enumerate(data["positions"][:-1], 1):
        shown = [
            {
                **{
                    name: None if at < 0 else data["strings"][at]
                    for name, at in zip(names, (*data["sites"][site], message), strict=True)
                },
                "index": None if index < 0 else index,
            }
            for site, message, index in position["remarks"]
        ]
        assert shown == read(run_path / "remarks" / f"phase-{phase:02d}.json")


def test_ir_and_its_diff(data: dict[str, Any], run_path: Path) -> None:
    for phase, position in enumerate(data["positions"]):
        lines = (run_path / "ir" / f"phase-{phase:02d}.txt").read_text().splitlines()
        assert texts(data, position["ir"]) == lines
    for phase, position in enumerate(data["positions"][:-1]):
        diff = texts(data, position["diff"])
        names = (f"ir/phase-{phase:02d}.txt", f"ir/phase-{phase + 1:02d}.txt")
        after = texts(data, data["positions"][phase + 1]["ir"])
        before = texts(data, position["ir"])
        assert sorted(diff) == sorted(difflib.unified_diff(before, after, *names, n=2, lineterm=""))
        assert any(line.startswith("+  ") for line in diff)


def test_program_has_blocks_lines_and_locality(data: dict[str, Any]) -> None:
    nodes = data["program"]["nodes"]
    named = {node["name"]: node for node in nodes}
    assert data["strings"][named["block_conv1"]["block"]] == "block"
    assert data["strings"][named["stem"]["block"]] == ""
    assert data["strings"][named["stem"]["source"]].startswith("net.py:")
    assert "self.stem(images)" in data["strings"][named["stem"]["code"]]
    assert named["images"]["source"] == -1
    space = next(space for space in data["program"]["spaces"] if space["name"] == "block.conv1")
    parts = {part: [nodes[at]["name"] for at in space[part]] for part in ("x", "y", "region", "a", "z")}
    relu = nodes[space["a"][0]]["name"]
    assert parts["y"] == ["block_conv1"]
    assert parts["z"] == ["block_conv2"]
    assert parts["region"] == parts["a"] == [relu]
    assert [[nodes[at]["name"], key] for at, key in space["consumers"]] == [
        ["block_conv2", "block.conv2.weight"]
    ]


def test_a_run_of_no_phase_yet(run_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run_path, out)
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text(lines[0] + lines[1][:20])  # a line that is being written
    data = gather(out)
    assert data["epochs"]["epoch"] == [1]
    (only,) = data["positions"]
    assert only["widths"] == gather(run_path)["positions"][0]["widths"]
    assert write_report(out).stat().st_size > 10_000


def _no_run(out: Path) -> None:
    shutil.rmtree(out)
    out.mkdir()


def _older(out: Path) -> None:
    shutil.rmtree(out / "scores")


def _without_program(out: Path) -> None:
    (out / "program.json").unlink()


def _damaged_scores(out: Path) -> None:
    (out / "scores" / "phase-02.json").write_text('{"phase": 2}')


def _truncated_remarks(out: Path) -> None:
    path = out / "remarks" / "phase-01.json"
    path.write_text(path.read_text()[:-20])


def _wrong_metrics(out: Path) -> None:
    (out / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": "first"}\n')


def _no_ir(out: Path) -> None:
    (out / "ir" / "phase-03.txt").unlink()


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_no_run, r"there is no run in .*config\.json(.|\n)*hint: name a directory"),
        (_older, r"phase-01\.json is missing, which a report needs(.|\n)*hint: runs of earlier versions"),
        (_without_program, r"program\.json is missing, which a report needs"),
        (_damaged_scores, r"phase-02\.json is damaged"),
        (_truncated_remarks, r"cannot read .*phase-01\.json"),
        (_wrong_metrics, r"metrics\.jsonl is damaged"),
        (_no_ir, r"cannot read .*phase-03\.txt"),
    ],
)
def test_what_is_no_whole_run(
    run_path: Path, tmp_path: Path, damage: Callable[[Path], None], match: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run_path, out)
    damage(out)
    with pytest.raises(MorphirError, match=match):
        gather(out)
