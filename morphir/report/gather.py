"""From a run directory to the report's data: plain JSON, small enough to be put into one HTML file.

Position p of the report is phase p + 1: the network that the phase trained, and what happened to it at the
phase's end; the last position is the network as it is now. Strings are numbers into one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from morphir.ir.difference import difference
from morphir.report.run_files import RunFiles, read_run_files
from morphir.report.tables import Table
from morphir.runtime.growing.events import PhaseRecord
from morphir.runtime.history.action import Action
from morphir.runtime.storage.program import Program
from morphir.runtime.storage.scores import MorphismScores

_EPOCH_COLUMNS = ("epoch", "stage", "phase", "loss", "test_loss", "test_error", "seconds")
_SITE_TEXTS = ("kind", "code", "space", "node", "source", "suggestion")
_CONTEXT = 2
"""Unchanged lines around every change of a diff."""


def gather(path: Path) -> dict[str, Any]:
    """Returns all that the report of a run shows.

    Args:
        path: A run directory, finished or not.

    Returns:
        ``title``, ``epochs`` and ``planned_epochs``, ``phases``, ``positions``, ``program``, and two tables
        that numbers point to: ``strings``, and ``sites``, what all remarks of one code on one space share.

    Raises:
        MorphirError: as :func:`~morphir.report.run_files.read_run_files`.
    """
    run, strings, sites = read_run_files(path), Table[str](), Table[tuple[int, ...]]()
    rewrites = {action.rewrite.number: action for action in run.rewrites if action.rewrite}
    positions = [_grown(run, phase, rewrites, strings, sites) for phase in run.grown]
    positions.append({"ir": _numbers(run.ir(len(run.grown)), strings), "widths": _widths_now(run)})
    return {
        "title": _title(run),
        "planned_epochs": run.planned_epochs,
        "epochs": {name: [getattr(epoch, name) for epoch in run.epochs] for name in _EPOCH_COLUMNS},
        "phases": [_phase(phase) for phase in run.phases],
        "positions": positions,
        "program": _program(run.program, strings),
        "strings": strings.rows(),
        "sites": sites.rows(),
    }


def _title(run: RunFiles) -> dict[str, str]:
    """Names the run by its model and data where the command line started it, else by its directory."""
    model, data = run.origin.get("model", {}), run.origin.get("data", {})
    width = f", width {model['width']}" if model.get("width") else ""
    return {
        "run": run.path.resolve().name,
        "model": f"{Path(model['model']).name}{width}" if "model" in model else "",
        "data": _without_folders(str(data.get("data", ""))),
    }


def _without_folders(data: str) -> str:
    """``imagefolder:photos`` for ``imagefolder:/home/me/photos``."""
    name, separator, folder = data.partition(":")
    return f"{name}{separator}{Path(folder).name}"


def _phase(phase: PhaseRecord) -> dict[str, Any]:
    left_out = ("widths", "next_widths")
    return {key: value for key, value in asdict(phase).items() if key not in left_out}


def _widths_now(run: RunFiles) -> list[int]:
    """The widths after the last rewrite; before the first one, those that the seed's IR says."""
    if run.phases:
        return [run.phases[-1].next_widths[name] for name in run.program.spaces]
    spaces = [line.strip() for line in run.ir(0) if line.startswith("  ") and not line.startswith("  %")]
    found = {name: _width(line, name) for line in spaces for name in run.program.spaces if _is_of(line, name)}
    return [found[name] for name in run.program.spaces]


def _is_of(line: str, space: str) -> bool:
    return line.startswith(f"{space}: ")


def _width(line: str, space: str) -> int:
    return int(line.removeprefix(f"{space}: ").split()[0])


def _grown(
    run: RunFiles,
    phase: PhaseRecord,
    rewrites: Mapping[int, Action],
    strings: Table[str],
    sites: Table[tuple[int, ...]],
) -> dict[str, Any]:
    """One phase: its network, the estimates, what was rewritten, and what was said about it."""
    scores, before, after = run.scores(phase.phase), run.ir(phase.phase - 1), run.ir(phase.phase)
    return {
        "widths": [phase.widths[name] for name in run.program.spaces],
        "ir": _numbers(before, strings),
        "diff": _numbers(_diff(before, after, phase.phase), strings),
        "prices": scores.prices,
        "scores": {
            space: {kind: _columns(columns) for kind, columns in kinds.items()}
            for space, kinds in scores.spaces.items()
        },
        "rewrites": [_rewrite(rewrites[number], strings) for number in scores.rewrites],
        "remarks": _remarks(run.remarks(phase.phase), strings, sites),
    }


def _columns(columns: MorphismScores) -> dict[str, Any]:
    """The estimates, of which four digits are seen; the costs of a space's groups are mostly the same."""
    return {
        "groups": list(columns.groups),
        "loss": [None if x is None else float(f"{x:.4g}") for x in columns.delta_loss],
        "parameters": _collapsed(columns.delta_parameters),
        "macs": _collapsed(columns.delta_macs),
        "applied": list(columns.applied),
    }


def _collapsed(values: Sequence[int]) -> int | list[int]:
    """Returns the one value where all are the same."""
    return values[0] if len(set(values)) == 1 else list(values)


def _rewrite(action: Action, strings: Table[str]) -> dict[str, Any]:
    rewrite = action.rewrite
    assert rewrite is not None
    return {
        "number": rewrite.number,
        "name": rewrite.name,
        "delta_parameters": rewrite.delta_parameters,
        "maps": {m.space: {"sources": list(m.sources), "signs": list(m.signs)} for m in rewrite.maps},
        "diff": _numbers(action.difference, strings),
    }


def _remarks(
    remarks: Iterable[Mapping[str, Any]], strings: Table[str], sites: Table[tuple[int, ...]]
) -> list[list[int]]:
    """Rows of the remark's site, its message and the group's index; -1 is nothing."""
    return [
        [
            sites.number(tuple(strings.number(remark[name]) for name in _SITE_TEXTS)),
            strings.number(remark["message"]),
            -1 if remark["index"] is None else remark["index"],
        ]
        for remark in remarks
    ]


def _diff(before: Sequence[str], after: Sequence[str], phase: int) -> list[str]:
    names = f"ir/phase-{phase - 1:02d}.txt", f"ir/phase-{phase:02d}.txt"
    return list(difference(before, after, names, context=_CONTEXT))


def _numbers(lines: Iterable[str], strings: Table[str]) -> list[int]:
    return [strings.number(line) for line in lines]


def _program(program: Program, strings: Table[str]) -> dict[str, Any]:
    """The program with nodes by their position; positions of nodes stand for their names everywhere."""
    at = {node.name: position for position, node in enumerate(program.nodes)}
    spaces = {name: position for position, name in enumerate(program.spaces)}
    parts = ("x", "y", "region", "a", "z")
    return {
        "nodes": [
            {
                "name": node.name,
                "block": strings.number(node.block),
                "inputs": [at[name] for name in node.inputs],
                "spaces": [spaces[name] for name in node.spaces],
                "source": strings.number(node.source),
                "code": strings.number(node.line),
            }
            for node in program.nodes
        ],
        "spaces": [
            {
                "name": name,
                "producers": [[at[use.node], use.parameter] for use in space.producers],
                "consumers": [[at[use.node], use.parameter] for use in space.consumers],
                **{part: [at[node] for node in getattr(space, part)] for part in parts},
            }
            for name, space in program.spaces.items()
        ],
    }
