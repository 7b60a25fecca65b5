"""How the costs grow: a learning step with the network and its batch, the compiler with the program.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --parts steps --repeats 9
    python benchmarks/scaling.py --parts compiler --models resnet18 densenet121

``steps``: the ratio of a learning step to a training step on VGG-19 as its width, image and batch grow, and
on torchvision's ResNets as their depth does, timed as ``benchmarks/speed.py`` times. ``compiler``: CPU
seconds of tracing (analysis and trial rewrites included), of the analysis alone and of a rewrite that changes
a quarter of all groups, against the number of nodes, on torchvision's networks with random weights; images of
64 pixels. Each round traces anew and changes another quarter; medians and the least of the rounds.

Writes ``steps.json`` and ``compiler.json``, each with an SVG beside it, to ``--out`` after each measurement.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing.arms import ARMS
from timing.cases import Case
from timing.clock import interleaved
from timing.machine import keep_freed_memory, machine
from timing.modes import modes
from timing.picture import plot_growth
from torch import nn

import morphir
from morphir.analysis.spaces import analyse
from morphir.morphisms.base import Morphism
from morphir.seeds import resolve

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ("resnet18", "resnet50", "densenet121", "densenet201", "efficientnet_b0", "convnext_large")
_BASE = Case("vgg19", "vgg19", 32, 32, 32)
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    for part in options.parts:
        rows: list[Row] = []
        for row in PARTS[part](options):
            rows.append(row)
            print(json.dumps(row), flush=True)
            options.out.mkdir(parents=True, exist_ok=True)
            result = {"machine": machine(options.device), "rows": rows}
            (options.out / f"{part}.json").write_text(json.dumps(result, indent=1))
            PLOTS[part](options.out / f"{part}.svg", rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--models", nargs="+", default=list(NETWORKS), help="for compiler")
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--sides", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16, 32, 64, 128])
    parser.add_argument("--depths", nargs="+", type=int, default=[18, 34, 50, 101])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="for compiler")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "scaling")
    return parser.parse_args(arguments)


def steps(options: argparse.Namespace) -> Iterator[Row]:
    """Yields the ratio along each quantity that grows, the others held."""
    grown = [("width", width, replace(_BASE, width=width)) for width in options.widths]
    grown += [("pixels", side, replace(_BASE, side=side)) for side in options.sides]
    grown += [("batch", batch, replace(_BASE, batch=batch)) for batch in options.batches]
    for depth in options.depths:
        name = f"resnet{depth}"
        grown.append(("depth", depth, Case(name, f"torchvision:{name}", None, 32, 16)))
    mode = modes(options.device)[0]
    for quantity, value, case in grown:
        arms = {name: ARMS[name](case, mode, options.device) for name in ("training", "learning")}
        times = interleaved(arms, options.repeats, options.device, warm_up=2)
        arms.clear()
        gc.collect()
        ratio = times["learning"].ratio(times["training"])
        medians = {f"{name}_ms": own.median for name, own in times.items()}
        yield {"grows": quantity, "value": value, "model": case.name, "ratio": ratio, **medians}


def compiler(options: argparse.Namespace) -> Iterator[Row]:
    """Yields each network's CPU seconds of trace, analysis and rewrite: medians and the least of rounds."""
    for name in options.models:
        torch.manual_seed(0)
        model = resolve(f"torchvision:{name}")
        rounds = [_compiled(model, start) for start in range(options.rounds)]
        timed = [key for key in rounds[0] if key.endswith("_s")]
        medians = {key: median(own[key] for own in rounds) for key in timed}
        least = {f"{key}_least": min(own[key] for own in rounds) for key in timed}
        yield {"model": name, **rounds[0], **medians, **least}


def _compiled(model: nn.Module, start: int) -> Row:
    """Measures one round: a trace anew, and another quarter of the groups."""
    traced, graph = _seconds(lambda: morphir.trace(model, torch.zeros(2, 3, 64, 64)))
    analysed, _ = _seconds(lambda: analyse(graph))
    groups = sum(space.width for space in graph.spaces.values())
    morphisms = a_quarter(graph, start)
    rewritten, _ = _seconds(lambda: morphir.transform(graph, morphisms))
    return {
        "nodes": len(graph.graph.nodes),
        "groups": groups,
        "morphisms": len(morphisms),
        "trace_s": traced,
        "analysis_s": analysed,
        "rewrite_s": rewritten,
    }


def a_quarter(graph: morphir.Graph, start: int) -> list[Morphism]:
    """Returns morphisms of a quarter of all groups of each space: splits and prunes by turns.

    Args:
        graph: A traced graph.
        start: Which quarter: the first group of each space that is changed.
    """
    found: list[Morphism] = []
    for name, space in graph.spaces.items():
        legal = [i for i, verdict in enumerate(space.verdicts) if verdict.kind == "exact"][start % 4 :: 4]
        found += [morphir.Split(name, index) for index in legal[::2]]
        found += [morphir.Prune(name, index) for index in legal[1::2]]
    return found


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _plot_steps(place: Path, rows: Sequence[Row]) -> None:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        series = panels.setdefault(row["grows"], {"ratio": []})
        series["ratio"].append((row["value"], row["ratio"]))
    plot_growth(place, panels, "a learning step, in training steps")


def _plot_compiler(place: Path, rows: Sequence[Row]) -> None:
    series = {
        key.removesuffix("_s"): [(row["nodes"], row[key]) for row in rows]
        for key in ("trace_s", "analysis_s", "rewrite_s")
    }
    plot_growth(place, {"nodes": series}, "CPU seconds")


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {"steps": steps, "compiler": compiler}
PLOTS = {"steps": _plot_steps, "compiler": _plot_compiler}


if __name__ == "__main__":
    keep_freed_memory()
    main()
