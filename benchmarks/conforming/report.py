"""The table of a collection's results, as Markdown."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from conforming.result import failures

Result = Mapping[str, Any]

COLUMNS = (
    "model",
    "px",
    "nodes",
    "spaces",
    "exact",
    "prune-only",
    "frozen, by code",
    "analysis",
    "split",
    "prune",
    "plan",
    "source",
    "retrace",
    "ONNX",
)
LEGEND = """\
Groups are channel groups, counted by verdict. *analysis*: CPU seconds of the channel analysis at 224 x
224 pixels, with its trial rewrites and what it has traced anew. *split*: about a third of the groups of
every space, all spaces at once, split at theta = 0 and compared with the original; where that fails,
half of the spaces at a time, down to each alone. *prune*: likewise pruned, compared with the original in
which these channels are zeroed where consumers read them, and left out where norms, softmax or
reductions mix them. *plan*: a random quarter of all groups of all spaces at once, half of them split. A
cell is the number of spaces (for the plan: of groups) and the largest difference relative to the largest
output, in float64, over evaluation and train mode; 1e-9 is allowed. *source*: the changed network's
exported PyTorch source computes the same bits. *retrace*: that source, traced again, has the same
spaces, widths, verdicts, producers, consumers and bindings. *ONNX*: the changed network in onnxruntime,
at three batch sizes. Weights, batch-norm statistics and affine parameters are random. *px* is the
smallest image size at which the model runs in both modes and has the spaces that it has at 224.
"""


def report(label: str, results: Sequence[Result], wanted: int, command: str) -> str:
    """Returns the report."""
    passed = [result for result in results if not failures(result)]
    lines = [
        f"# Conformance: {label}",
        "",
        f"**{len(passed)} of {wanted} models pass every check.**{_speed(results)}",
        "",
        f"Made by `{command}` with {_versions()}; {_sources(results)}.",
        "",
        LEGEND,
        f"| {' | '.join(COLUMNS)} |",
        f"|{' --- |' * len(COLUMNS)}",
        *(f"| {' | '.join(_row(result))} |" for result in results),
        "",
        *_codes(results),
        *_refusals(results),
        *_failures(results),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _speed(results: Sequence[Result]) -> str:
    seconds = {r["model"]: r["analysis_seconds"] for r in results if "analysis_seconds" in r}
    if not seconds:
        return ""
    slowest = max(seconds, key=seconds.__getitem__)
    fast = sum(value < 5 for value in seconds.values())
    return (
        f" Analysis at 224 pixels takes under 5 s for {fast} of {len(seconds)}, "
        f"at most {seconds[slowest]:.1f} s ({slowest})."
    )


def _versions() -> str:
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "torchvision", "onnx", "onnxruntime")
    )
    return f"Python {platform.python_version()}, {packages}"


def _sources(results: Sequence[Result]) -> str:
    counts = Counter(result["fingerprint"] for result in results)
    if len(counts) == 1:
        return f"all results are of one version of MorphIR's sources ({next(iter(counts))})"
    parts = ", ".join(f"{count} of {name}" for name, count in counts.most_common())
    return f"results are of several versions of MorphIR's sources: {parts}"


def _row(result: Result) -> list[str]:
    if "spaces" not in result:
        return [result["model"], *["-"] * (len(COLUMNS) - 2), "**error**"]
    groups, frozen = result["groups"], result["frozen"]
    return [
        result["model"],
        str(result.get("size", "-")),
        str(result["nodes"]),
        str(result["spaces"]),
        str(groups.get("exact", 0)),
        str(groups.get("prune-only", 0)),
        ", ".join(f"{code} {count}" for code, count in sorted(frozen.items())) or "0",
        f"{result['analysis_seconds']:.1f}",
        *(_cell(result, check) for check in ("split", "prune", "plan")),
        *(_cell(result, check) for check in ("export-pytorch", "retrace", "export-onnx")),
    ]


def _cell(result: Result, name: str) -> str:
    checks = [check for check in result["checks"] if check["check"] == name]
    failed = sum(check["outcome"] == "failed" for check in checks)
    done = [check for check in checks if check["outcome"] == "ok"]
    if failed:
        return f"**{failed} of {len(checks)} failed**"
    if not done:
        return "refused" if checks else "-"
    differences = [check["difference"] for check in done if check["difference"] is not None]
    if not differences:
        return "ok" if not any(check["detail"] for check in done) else f"{len(done)} not comparable"
    count = done[0]["groups"] if name == "plan" else len(done)
    blind = len(done) - len(differences)
    return f"{count}, {max(differences):.0e}" + (f"; {blind} not comparable" if blind else "")


def _codes(results: Sequence[Result]) -> list[str]:
    reasons: dict[str, str] = {}
    for result in results:
        reasons.update(result.get("reasons", {}))
    return (
        ["Codes:", "", *(f"- `{code}`: {reasons[code]}" for code in sorted(reasons)), ""] if reasons else []
    )


def _refusals(results: Sequence[Result]) -> list[str]:
    lines = [
        f"- {result['model']}, {check['check']}: {check['detail'].splitlines()[0]}"
        for result in results
        for check in result["checks"]
        if check["outcome"] == "refused" and check["space"] is None
    ]
    return ["Refused:", "", *lines, ""] if lines else []


def _failures(results: Sequence[Result]) -> list[str]:
    lines = [
        f"- {result['model']}: {' '.join(failure.split())[:400]}"
        for result in results
        for failure in failures(result)
    ]
    return ["Failed:", "", *lines, ""] if lines else []
