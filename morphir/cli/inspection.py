"""``morphir inspect``: the channel spaces of a model, what each allows and why, its locality, its cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from morphir.analysis.cost import Cost, cost, delta_cost
from morphir.analysis.explain import explain
from morphir.analysis.locality import locality
from morphir.cli.options import AsJson, Channels, Classes, ImageSize, Subject, Width
from morphir.cli.output import print_json, print_table
from morphir.cli.runs import load_subject
from morphir.errors import MorphirError
from morphir.ir.channels import ChannelSpace, VerdictKind
from morphir.ir.codes import suggestion_for
from morphir.ir.graph import Graph
from morphir.ir.printer import print_graph
from morphir.ir.source import located
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split

_ALLOWING: dict[Literal["split", "prune"], tuple[VerdictKind, ...]] = {
    "split": Split.allowed,
    "prune": Prune.allowed,
}


def command(
    subject: Subject,
    width: Width = None,
    channels: Channels = 3,
    classes: Classes = 10,
    image_size: ImageSize = None,
    space: Annotated[
        str | None, typer.Option(help="Show one space: its locality, and each group's verdict.")
    ] = None,
    why: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="SPACE[:INDEX]",
            help="Explain a space, or one of its groups: what ties and what restricts it, step by step.",
        ),
    ] = None,
    ir: Annotated[bool, typer.Option("--ir", help="Print the textual IR.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the channel spaces of a model or of a run's network.

    One line per space: its width, how many channel groups may be split and pruned (exact), only pruned, or
    not changed at all (frozen) and why, and what one split and one prune cost. Then all groups by verdict,
    and what you could do.

    \b
    morphir inspect vgg19 --width 16
    morphir inspect torchvision:resnet18 --space layer1.0.conv2
    morphir inspect torchvision:resnet18 --explain fc:3
    morphir inspect net.py:build --json
    morphir inspect runs/demo --ir
    """  # noqa: D301
    graph = load_subject(subject, width=width, channels=channels, classes=classes, image_size=image_size)
    if ir:
        text = print_graph(graph)
        print_json({"ir": text}) if as_json else typer.echo(text)
    elif why is not None:
        found = explain(graph, *_group(graph, why))
        print_json(found.to_json()) if as_json else typer.echo(str(found))
    elif space is not None:
        print_json(describe_locality(graph, space)) if as_json else _print_space(graph, space)
    else:
        print_json(describe(graph)) if as_json else _print_spaces(subject, graph)


def _group(graph: Graph, name: str) -> tuple[str, int | None]:
    """Reads ``SPACE`` or ``SPACE:INDEX``; a space of the whole name comes first."""
    space, colon, index = name.rpartition(":")
    if name in graph.spaces or not colon:
        return name, None
    if not index.isdecimal():
        raise MorphirError(
            f"{index!r} is no number of a channel group", hint="name a group as SPACE:INDEX, as conv1:3"
        )
    return space, int(index)


def describe(graph: Graph) -> dict[str, Any]:
    """Returns a graph's cost, its spaces, and its channel groups by verdict, as plain data."""
    return {
        **asdict(cost(graph)),
        "spaces": [describe_space(graph, space) for space in graph.spaces.values()],
        "verdicts": [
            {"kind": kind, "code": code, "groups": count, "suggestion": suggestion_for(code)}
            for (kind, code), count in graph.channels.verdict_counts().items()
        ],
    }


def describe_space(graph: Graph, space: ChannelSpace) -> dict[str, Any]:
    """Returns one space as plain data; ``split`` and ``prune``: change of cost of the first legal one."""
    counts = Counter(verdict.kind for verdict in space.verdicts)
    split, prune = (_change(graph, space, kind) for kind in _ALLOWING)
    return {
        "name": space.name,
        "width": space.width,
        "exact": counts["exact"],
        "prune_only": counts["prune-only"],
        "frozen": counts["frozen"],
        "reasons": _reasons(space),
        "producers": [
            {"node": p.node, "parameter": p.parameter, "source": _text(p.source)} for p in space.producers
        ],
        "consumers": [
            {"node": c.node, "tensor": c.tensor, "parameter": c.parameter, "source": _text(c.source)}
            for c in space.consumers
        ],
        "split": None if split is None else asdict(split),
        "prune": None if prune is None else asdict(prune),
    }


def describe_locality(graph: Graph, name: str) -> dict[str, Any]:
    """Returns a space, its locality with source lines, and every group's verdict as plain data."""
    found = locality(graph, name)
    sources = dict(found.sources)

    def located(nodes: Sequence[str]) -> list[dict[str, str | None]]:
        return [{"node": node, "source": sources.get(node)} for node in nodes]

    space = graph.space(name)
    return {
        **describe_space(graph, space),
        "locality": {part: located(getattr(found, part)) for part in ("x", "y", "region", "a", "z")},
        "verdicts": [{"index": at, **verdict.to_json()} for at, verdict in enumerate(space.verdicts)],
    }


def _reasons(space: ChannelSpace) -> list[dict[str, Any]]:
    """Gathers the groups that are not exact by what restricts them."""
    counts = Counter(verdict for verdict in space.verdicts if verdict.kind != "exact")
    return [{**verdict.to_json(), "groups": count} for verdict, count in counts.items()]


def _change(graph: Graph, space: ChannelSpace, kind: Literal["split", "prune"]) -> Cost | None:
    legal = (at for at, verdict in enumerate(space.verdicts) if verdict.kind in _ALLOWING[kind])
    index = next(legal, None)
    return None if index is None else delta_cost(graph, kind, space.name, index)


def _print_spaces(subject: str, graph: Graph) -> None:
    spaces = [describe_space(graph, space) for space in graph.spaces.values()]
    print_table(
        f"{subject}: {cost(graph)} per sample, {len(spaces)} channel spaces",
        (
            *("space", ">width", ">exact", ">prune-only", ">frozen", "producers", "consumers"),
            *("> split: parameters", ">MACs", ">prune: parameters", ">MACs", "why not exact"),
        ),
        [
            (
                *(space[key] for key in ("name", "width", "exact", "prune_only", "frozen")),
                ", ".join(producer["node"] for producer in space["producers"]),
                ", ".join(consumer["node"] for consumer in space["consumers"]),
                *(_cell(space[kind], of) for kind in _ALLOWING for of in ("parameters", "macs")),
                "; ".join(map(_reason_line, space["reasons"])),
            )
            for space in spaces
        ],
    )
    _print_verdicts(graph)


def _print_verdicts(graph: Graph) -> None:
    counts = graph.channels.verdict_counts()
    print_table(
        f"{sum(counts.values()):,} channel groups",
        ("verdict", "code", ">groups", "what you could do"),
        [(kind, code or None, count, suggestion_for(code) or None) for (kind, code), count in counts.items()],
    )


def _cell(change: dict[str, int] | None, resource: str) -> int | None:
    return None if change is None else change[resource]


def _reason_line(reason: dict[str, Any]) -> str:
    where = located(reason["node"], reason["source"])
    return f"{reason['groups']} {reason['kind']}: {reason['reason']} [{reason['code']}]{where}"


def _print_space(graph: Graph, name: str) -> None:
    typer.echo(str(locality(graph, name)))
    space = describe_space(graph, graph.space(name))
    typer.echo(f"{space['width']} channel groups, {space['exact']} exact")
    for reason in space["reasons"]:
        typer.echo(f"  {_reason_line(reason)}")
        if reason["suggestion"]:
            typer.echo(f"    hint: {reason['suggestion']}")
    for kind in _ALLOWING:
        if space[kind] is not None:
            typer.echo(
                f"one {kind}: {space[kind]['parameters']:+,} parameters, {space[kind]['macs']:+,} MACs"
            )


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)
