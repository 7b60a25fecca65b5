"""What a long history costs, and that it restores every point bit for bit.

    python benchmarks/history.py --parts phases --data-dir data
    python benchmarks/history.py --parts rewrites
    python benchmarks/history.py --parts cost --images 4000 --data-dir data

``phases``: a VGG-19 with 16 channels a layer grows for ``--phases`` phases on ``--images`` images of
Fashion-MNIST (short phases: what is asked is the history, not the network). Then every point is stepped to,
forwards and backwards; program and bits of all tensors must be the same both ways, the programs of the
phases' ends must be what the run wrote, and the last point must be the grown network.

``rewrites``: a ResNet-50 is rewritten ``--rewrites`` times, by random splits with a theta and random prunes.
Then its history is opened in a fresh process, and far points are gone to.

``cost``: the same network grows for a few phases with a run directory (history, IR, scores, checkpoints) and
without, by turns: the ratio of processor time is at most what recording costs a run that nobody inspects.

Writes ``cost.json``, ``phases.json`` and ``rewrites.json`` to ``--out``, and a line for each to the terminal.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from timing.machine import machine
from torch.nn import functional

import morphir
from morphir.cli.debug import resolve_model
from morphir.cli.models import ModelSpec
from morphir.data import eval_loader, load, train_loader
from morphir.debug import Session
from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.morphisms.plan import index_maps
from morphir.report import REPORT_FILE, write_report
from morphir.runtime.history.recorder import RecordHistory
from morphir.runtime.history.state import program_digest, tensor_digests
from passes.base import Pass, PassResult
from passes.instruments import instrumented
from passes.manager import PassManager
from passes.rewriter import Rewriter

ROOT = Path(__file__).resolve().parent.parent
_TEST_IMAGES = 256
_COST_PHASES = 2
_RESNET = ModelSpec(model="torchvision:resnet50", classes=1000, image_size=64)
Row = dict[str, Any]
Point = tuple[str, dict[str, str]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.reopen:
        print(json.dumps(reopened(options.reopen)))
        return
    for part in options.parts:
        row = PARTS[part](options)
        print(json.dumps(row), flush=True)
        (options.out / f"{part}.json").write_text(json.dumps({"machine": machine("cpu"), **row}, indent=1))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--phases", type=int, default=30)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rewrites", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "history")
    parser.add_argument("--reopen", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def phases(options: argparse.Namespace) -> Row:
    """Grows, writes the report, and steps over the whole history."""
    run = fresh(options.out / "vgg19")
    spec = ModelSpec(model="vgg19", width=16, channels=1, image_size=28)
    torch.manual_seed(0)
    graph = spec.trace()
    start = time.perf_counter()
    grown(graph, spec, run, options, phases=options.phases)
    seconds = time.perf_counter() - start
    report = write_report(run).stat().st_size
    session = Session.open(run, resolve=resolve_model)
    start = time.perf_counter()
    there = [point(session.graph)]
    while session.position < session.last:
        session.next()
        there.append(point(session.graph))
    back = [point(session.graph)]
    while session.position > 0:
        session.back()
        back.append(point(session.graph))
    stepping = time.perf_counter() - start
    wrong = [
        number for number, both in enumerate(zip(there, reversed(back), strict=True)) if both[0] != both[1]
    ]
    assert not wrong, f"points that differ on the way back: {wrong}"
    assert there[-1] == point(graph), "the last point is not the grown network"
    check_phases(session, run)
    return {
        "phases": options.phases,
        "actions": session.last,
        "rewrites": len(graph.history),
        "grown in s": round(seconds, 1),
        "stepped there and back in s": round(stepping, 1),
        "history MB": megabytes(run / "history"),
        f"{REPORT_FILE} MB": round(report / 1e6, 2),
        "parameters": sum(parameter.numel() for parameter in graph.parameters()),
    }


def cost(options: argparse.Namespace) -> Row:
    """Grows with a run directory and without, by turns."""
    spec = ModelSpec(model="vgg19", width=16, channels=1, image_size=28)
    ratios: list[float] = []
    for turn in range(options.rounds):
        seconds: dict[bool, float] = {}
        for recorded in (True, False) if turn % 2 else (False, True):
            torch.manual_seed(0)
            graph, run = spec.trace(), fresh(options.out / "cost") if recorded else None
            start = time.process_time()
            grown(graph, spec, run, options, phases=_COST_PHASES)
            seconds[recorded] = time.process_time() - start
        ratios.append(seconds[True] / seconds[False])
    return {
        "phases": _COST_PHASES,
        "images": options.images,
        "ratios": [round(ratio, 3) for ratio in ratios],
        "median ratio": round(statistics.median(ratios), 3),
    }


def grown(
    graph: Graph, spec: ModelSpec, run: Path | None, options: argparse.Namespace, *, phases: int
) -> None:
    config = morphir.GrowthConfig.preset(
        "laptop",
        phases=phases,
        final="none",
        max_parameters=300_000,
        lambda_parameters=0,
        min_width=12,
    )
    config = config.model_copy(
        update={"trial_batches": 1, "recalibration_batches": 1, "batch_norm_batches": 1, "batch_size": 64}
    )
    dataset = load("fashion-mnist", str(options.data_dir), False, limit=options.images)
    dataset = replace(dataset, test=dataset.test.first(_TEST_IMAGES))
    loss = partial(functional.cross_entropy, reduction="none")
    origin = spec.model_dump(mode="json")
    data = train_loader(dataset, config.batch_size, seed=0, device="cpu")
    morphir.grow(
        graph, data, loss, config=config, eval_data=eval_loader(dataset), out=run, quiet=True, origin=origin
    )


def check_phases(session: Session, run: Path) -> None:
    """Compares the program after each phase with what the run wrote of it."""
    ends = {action.phase: action.number for action in session.actions if action.rewrite}
    for phase, number in ends.items():
        text = session.at(number, morphir.print_graph)
        assert text == (run / "ir" / f"phase-{phase:02d}.txt").read_text(), f"phase {phase} differs"


def point(graph: Graph) -> Point:
    """What a point is: its program, and the bits of its tensors."""
    return program_digest(graph), tensor_digests(graph)


def rewrites(options: argparse.Namespace) -> Row:
    """Rewrites a ResNet-50, and opens its history in a fresh process."""
    folder = fresh(options.out / "resnet50")
    torch.manual_seed(0)
    graph = _RESNET.trace()
    spec = _RESNET.model_dump(mode="json")
    start = time.perf_counter()
    with instrumented(RecordHistory.start(graph, folder, spec)):
        PassManager((DrawnRewrites(options.rewrites),)).run(graph)
    seconds = time.perf_counter() - start
    command = [sys.executable, __file__, "--reopen", str(folder), "--threads", str(options.threads)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    session = Session.open(folder, graph=_RESNET.trace())
    session.goto(session.last)
    assert point(session.graph) == point(graph), "the last point is not the rewritten network"
    return {
        "rewrites": len(graph.history),
        "recorded in s": round(seconds, 1),
        "history MB": megabytes(folder),
        **found,
    }


@dataclass(frozen=True)
class DrawnRewrites(Pass):
    """Random splits with a theta, and random prunes, each a rewrite of its own."""

    name: ClassVar[str] = "drawn-rewrites"

    count: int

    def apply(self, rewriter: Rewriter) -> PassResult:
        """Applies them."""
        rng = random.Random(0)
        for _ in range(self.count):
            morphism = drawn(rewriter.graph, rng)
            rewriter.apply(self.name, index_maps(rewriter.graph, [morphism]), [str(morphism)])
        return PassResult()


def drawn(graph: Graph, rng: random.Random) -> Morphism:
    spaces = [space for space in graph.spaces.values() if space.verdicts[0].kind == "exact"]
    space = rng.choice(spaces)
    index = rng.randrange(space.width)
    if rng.random() < 0.5 and space.width > space.least:
        return morphir.Prune(space.name, index)
    thetas = {
        producer.parameter: torch.randn_like(graph.get_parameter(producer.parameter)[0]) * 0.01
        for producer in space.producers
    }
    return morphir.Split(space.name, index, thetas)


def reopened(folder: Path) -> Row:
    """Opens a history, and goes to its end, and half-way back."""
    start, processor = time.perf_counter(), time.process_time()
    session = Session.open(folder, resolve=resolve_model)
    opened, processor = time.perf_counter(), time.process_time() - processor
    session.goto(session.last)
    last = time.perf_counter()
    session.goto(session.last // 2)  # as far as can be from what is stored, if each 200th of 1,000 is
    middle = time.perf_counter()
    return {
        "opened in s": round(opened - start, 2),
        "opened in s of processor": round(processor, 2),
        "last point reached in s": round(last - opened, 2),
        "point far from all reached in s": round(middle - last, 2),
    }


def fresh(folder: Path) -> Path:
    """Returns a folder that is not there yet, in one that is."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def megabytes(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


PARTS = {"phases": phases, "rewrites": rewrites, "cost": cost}

if __name__ == "__main__":
    main()
