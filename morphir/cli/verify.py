"""``morphir verify``: the oracle as a command, one line per channel space."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from morphir.cli.options import AsJson, Channels, Classes, ImageSize, Subject, Width
from morphir.cli.output import print_json
from morphir.cli.runs import load_subject
from morphir.runtime.oracle.oracle import Check, check_graph, summary


def command(
    subject: Subject,
    width: Width = None,
    channels: Channels = 3,
    classes: Classes = 10,
    image_size: ImageSize = None,
    max_spaces: Annotated[
        int | None,
        typer.Option(help="Check so many spaces, spread over the network; all if left out.", min=1),
    ] = None,
    exports: Annotated[bool, typer.Option(help="Export the changed network too.")] = True,
    seed: Annotated[int, typer.Option(help="Of inputs, batch-norm statistics and the choice of groups.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Prove on a model that splits, prunes and exports are right.

    In float64, in evaluation and in train mode, for each channel space: splits at theta = 0 leave the
    outputs as they were; prunes equal the original with these channels zeroed. Then a random plan over a
    quarter of all channel groups, and the exports of the changed network. The exit code is 1 if anything
    failed.

    \b
    morphir verify vgg19 --width 8
    morphir verify torchvision:resnet18 --image-size 64 --max-spaces 12
    morphir verify net.py:build --json
    """  # noqa: D301
    graph = load_subject(subject, width=width, channels=channels, classes=classes, image_size=image_size)
    checks: list[Check] = []
    for check in check_graph(graph, seed=seed, max_spaces=max_spaces, exports=exports):
        checks.append(check)
        if not as_json:
            typer.echo(line(check))
    _report(checks, as_json)
    if summary(checks)["failed"]:
        raise typer.Exit(1)


def line(check: Check) -> str:
    """Returns a check as one line."""
    site = check.check if check.space is None else f"{check.check} {check.space}"
    groups = f", {check.groups} group{'s' * (check.groups != 1)}" if check.groups else ""
    difference = "" if check.difference is None else f", difference {check.difference:.1e}"
    outcome = "FAILED" if check.outcome == "failed" else check.outcome
    where = f" at %{check.node}" if check.node else ""
    source = f" ({check.source})" if check.source else ""
    detail = f": {check.detail}{where}{source}" if check.detail else ""
    return f"{outcome:<8}{site}{groups}{difference}{detail}"


def _report(checks: Iterable[Check], as_json: bool) -> None:
    checks = list(checks)
    counts = summary(checks)
    if as_json:
        print_json({"checks": [check.to_json() for check in checks], "summary": counts})
    else:
        typer.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
