"""How the oracle's checks read: a line for each channel space, and what was refused and why at the end."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from morphir.ir.graph import Graph
from morphir.ir.source import located
from morphir.runtime.oracle.checks import Check, summary

_OTHER_SITES = ("plan", "export-pytorch", "retrace", "export-onnx")
_OUTCOMES = {"ok": "ok", "refused": "refused", "failed": "FAILED"}
_CELL = 18


def header(names: Sequence[str]) -> str:
    """Returns the line above the table.

    Args:
        names: The spaces that are checked, in order.
    """
    return f"{'space':<{_width(names)}}  {'groups':>6}  {'split':<{_CELL}}  {'prune':<{_CELL}}".rstrip()


def lines_of(graph: Graph, names: Sequence[str], together: Sequence[Check]) -> Iterator[str]:
    """Yields the line of one space, or of a check of the whole graph; a failure's details follow.

    Args:
        graph: What is checked.
        names: The spaces that are checked, in order.
        together: The checks of one site.
    """
    space = together[0].space
    site, groups = (together[0].check, "") if space is None else (space, f"{graph.space(space).width:,}")
    cells = "  ".join(f"{_cell(check):<{_CELL}}" for check in together)
    notes = [_note(check) for check in together if check.detail and check.outcome != "failed"]
    yield f"{site:<{_width(names)}}  {groups:>6}  {cells}  {'; '.join(dict.fromkeys(notes))}".rstrip()
    for check in together:
        if check.outcome == "failed":
            yield from textwrap.indent(f"{check.check}: {_note(check)}", "    ").splitlines()


def closing_lines(checks: Sequence[Check]) -> list[str]:
    """Returns what was refused, by code and with what the user could do, and the counts."""
    sites: dict[str, dict[str, None]] = {}
    for check in checks:
        if check.outcome == "refused":
            sites.setdefault(check.code, {}).setdefault(check.space or check.check)
    hints = {check.code: check.suggestion for check in checks}
    lines = [line for code, refused in sites.items() for line in _refusals(code, list(refused), hints)]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in summary(checks).items())
    return ["", *(["refused", *lines] if lines else []), counts]


def _refusals(code: str, sites: Sequence[str], hints: Mapping[str, str]) -> Iterator[str]:
    shown = ", ".join(sites[:3]) + (f" and {len(sites) - 3} more" if len(sites) > 3 else "")
    yield f"  {code or 'no code'}: {shown}"
    if hints[code]:
        yield f"    hint: {hints[code]}"


def _width(names: Sequence[str]) -> int:
    return max(map(len, (*names, *_OTHER_SITES)))


def _cell(check: Check) -> str:
    difference = "" if check.difference is None else f" {check.difference:.1e}"
    groups = f" ({check.groups})" if check.groups else ""
    return f"{_OUTCOMES[check.outcome]}{difference}{groups}"


def _note(check: Check) -> str:
    tag = f" [{check.code}]" if check.code else ""
    return f"{check.detail}{tag}{located(check.node, check.source)}"
