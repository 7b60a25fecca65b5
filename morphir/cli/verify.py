"""``morphir verify``: the oracle as a command, one line per channel space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Annotated

import typer

from morphir.cli.options import AsJson, Channels, Classes, ImageSize, Subject, Width
from morphir.cli.output import Lines, print_json
from morphir.cli.runs import load_subject
from morphir.cli.verification import closing_lines, header, lines_of
from morphir.runtime.growing.config import LARGEST_SEED
from morphir.runtime.oracle.oracle import Check, check_graph, summary


def command(
    subject: Subject,
    width: Width = None,
    channels: Channels = 3,
    classes: Classes = 10,
    image_size: ImageSize = None,
    space: Annotated[
        list[str] | None,
        typer.Option(help="Check this space alone, without plan and exports; may be given again."),
    ] = None,
    max_spaces: Annotated[
        int | None,
        typer.Option(help="Check so many spaces, spread over the network; all if left out.", min=1),
    ] = None,
    exports: Annotated[bool, typer.Option(help="Export the changed network too.")] = True,
    seed: Annotated[
        int,
        typer.Option(
            help="Of inputs, batch-norm statistics and the choice of groups.", min=0, max=LARGEST_SEED
        ),
    ] = 0,
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
    morphir verify torchvision:resnet18 --space layer1.0.conv2
    morphir verify net.py:build --json
    """  # noqa: D301
    graph = load_subject(subject, width=width, channels=channels, classes=classes, image_size=image_size)
    names = list(graph.spaces) if space is None else [graph.space(name).name for name in space]
    found = check_graph(graph, seed=seed, spaces=space, max_spaces=max_spaces, exports=exports)
    checks: list[Check] = []
    with Lines("spaces", min(len(names), max_spaces or len(names)), quiet=as_json) as out:
        out.line(header(names) if names else "no channel space: there is nothing to split or prune")
        for together in _by_site(found):
            checks += together
            out.advance(together[0].space is not None)
            for line in lines_of(graph, names, together):
                out.line(line)
    if as_json:
        print_json({"checks": [check.to_json() for check in checks], "summary": summary(checks)})
    else:
        typer.echo("\n".join(closing_lines(checks)))
    if summary(checks)["failed"]:
        raise typer.Exit(1)


def _by_site(checks: Iterator[Check]) -> Iterator[Sequence[Check]]:
    """Yields the checks of one space together, and each other check on its own."""
    for _, together in groupby(checks, key=lambda check: check.space or check.check):
        yield list(together)
