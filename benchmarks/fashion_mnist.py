"""Does growing pay? A grown network against its seed and against a uniformly widened one, on Fashion-MNIST.

    python benchmarks/fashion_mnist.py --data-dir data --seeds 0 1 2 --budget final total
    python benchmarks/fashion_mnist.py --data-dir data --model resnet20 --width 8 --out runs/resnet20
    python benchmarks/fashion_mnist.py --data-dir data --seeds 3 4 --arms again mirrored \
        --widths-of runs/fashion-mnist/seed-2/grown/result.json --out runs/layout
    python benchmarks/fashion_mnist.py --data-dir data --seeds 11 12 --arms again --out runs/front-heavy \
        --widths 34 34 36 36 36 36 36 36 20 20 20 20 16 16 16 16

For each seed: ``grown`` is VGG-19 with 16 channels a layer (or another of MorphIR's seeds), grown by the
preset, its architecture retrained from new weights. ``seed`` is the network that it grew from, ``wide`` the
narrowest uniform one with at least as many parameters as the grown one, ``same-macs`` that with at least as
many MACs; ``mirrored`` (VGG-19 alone) has the grown network's widths in reverse order: as many parameters,
laid out the other way. ``again`` has the grown network's widths, from the new weights of another seed; with
``--widths-of``, which takes them from an earlier result, or ``--widths``, nothing is grown. All are trained
by the very same code: the final training of a run without growth phases, so optimizer, schedule and
augmentation are the same. A budget says for how many epochs: ``final``, as many as the grown architecture's
retraining; ``total``, as many as the whole grown run, where an epoch of morphism learning counts as one of
training.

A stopped run continues where it was: each (seed, arm) has a run directory and is resumed or, when finished,
skipped. Writes ``results.json`` and ``results.md`` after every arm.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import morphir
from morphir.data import eval_loader, load, train_loader
from morphir.data.dataset import Dataset
from morphir.seeds import SEEDS, VGG19, resolve
from morphir.seeds.layers import initialise

SEED_WIDTH = 16
ARMS = ("seed", "wide", "same-macs", "mirrored", "again")
Width = int | list[int]
Build = Callable[[Width], morphir.Graph]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    dataset = load(options.data, options.data_dir, limit=options.limit)
    settings = dict(pair.split("=", 1) for pair in options.set)
    config = morphir.GrowthConfig.preset(
        options.preset, device=options.device, **{key: json.loads(value) for key, value in settings.items()}
    )
    rows = []
    for seed in options.seeds:
        for row in run_seed(dataset, config, seed, options):
            rows.append(row)
            write(options.out, rows, options)
            print(json.dumps(row), flush=True)
    print((options.out / "results.md").read_text())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", choices=["final", "total"], nargs="+", default=["final"])
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=ARMS[:3], help="beside the grown network")
    parser.add_argument("--widths-of", type=Path, help="result.json of a grown network: none is grown")
    parser.add_argument("--widths", type=int, nargs="+", help="of VGG-19's layers: none is grown")
    parser.add_argument("--model", choices=sorted(SEEDS), default="vgg19")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=Path("runs/fashion-mnist"))
    parser.add_argument("--limit", type=int, help="use the first so many training images only")
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--width", type=int, default=SEED_WIDTH)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    return parser.parse_args(arguments)


def run_seed(dataset: Dataset, config: morphir.GrowthConfig, seed: int, options: argparse.Namespace):
    """Yields one row per arm."""
    config = config.model_copy(update={"seed": seed})
    folder = options.out / f"seed-{seed}"
    build = partial(trace, dataset, options.model)
    if options.widths:
        grown = sizes(build(options.widths))
    elif options.widths_of:
        grown = json.loads(options.widths_of.read_text())
    else:
        grown = run(dataset, build, options.width, config, folder / "grown")
        yield {"seed": seed, "arm": "grown", "width": options.width, **grown}
    grown_widths = list(grown["widths"].values())[:-1]  # without the classifier
    widths = {
        "seed": options.width,
        "wide": matching_width(build, "parameters", grown["parameters"], options.width),
        "same-macs": matching_width(build, "macs", grown["macs"], options.width),
        "mirrored": grown_widths[::-1],
        "again": grown_widths,
    }
    epochs = {"final": config.final_epochs, "total": total_epochs(config)}
    for budget in options.budget:
        for arm in options.arms:
            plain = config.model_copy(
                update={"phases": 0, "final": "retrain", "final_epochs": epochs[budget]}
            )
            name = f"{arm}-{budget}"
            found = run(dataset, build, widths[arm], plain, folder / name)
            yield {"seed": seed, "arm": name, "width": widths[arm], **found}


def sizes(graph: morphir.Graph) -> dict:
    """Returns what a network takes, and its widths."""
    cost = morphir.cost(graph)
    widths = {name: space.width for name, space in graph.spaces.items()}
    return {"parameters": cost.parameters, "macs": cost.macs, "widths": widths}


def total_epochs(config: morphir.GrowthConfig) -> int:
    return config.phases * (config.train_epochs + config.learn_epochs) + config.final_epochs


def run(dataset: Dataset, build: Build, width: Width, config: morphir.GrowthConfig, out: Path) -> dict:
    """Trains or grows one network, going on where an earlier call was stopped; returns what it came to."""
    finished = out / "result.json"
    if finished.exists():
        return json.loads(finished.read_text())
    resume = (out / "config.json").exists()
    if out.exists() and not resume:
        shutil.rmtree(out)
    torch.manual_seed(config.seed)
    result = morphir.grow(
        build(width),
        train_loader(dataset, config.batch_size, seed=config.seed, device=config.device),
        partial(cross_entropy, reduction="none"),
        config=config,
        eval_data=eval_loader(dataset, device=config.device),
        out=out,
        resume=resume,
        initialise=initialise,
    )
    row = {
        **sizes(result.graph),
        "error": result.evaluation.error,
        "epochs": total_epochs(config),
        "seconds": round(sum(phase.seconds for phase in result.phases), 1),
    }
    finished.write_text(json.dumps(row))
    return row


def trace(dataset: Dataset, model: str, width: Width) -> morphir.Graph:
    sizes = {"in_channels": dataset.channels, "classes": dataset.classes, "image_size": dataset.image_size}
    network = resolve(model, width=width, **sizes) if isinstance(width, int) else VGG19(width=width, **sizes)
    return morphir.trace(network, torch.zeros(4, dataset.channels, dataset.image_size, dataset.image_size))


def matching_width(build: Build, resource: str, amount: int, width: int) -> int:
    """Returns the smallest uniform width, not below the seed's, with at least so much of a resource."""
    while getattr(morphir.cost(build(width)), resource) < amount:
        width += 1
    return width


def write(out: Path, rows: list[dict], options: argparse.Namespace) -> None:
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    (out / "results.json").write_text(json.dumps({"options": given, "rows": rows}, indent=1) + "\n")
    (out / "results.md").write_text(table(rows))


def table(rows: list[dict]) -> str:
    """Returns a markdown table, one line per arm: means over the seeds, errors with each seed's."""
    by_arm: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        by_arm[row["arm"]].append(row)
    lines = [
        "| network | width | epochs | parameters | MACs | test error | by seed | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for arm, found in by_arm.items():
        mean = {key: statistics.mean(row[key] for row in found) for key in _NUMBERS}
        widths = sorted({w for row in found for w in _each(row["width"])})
        each = ", ".join(f"{row['error']:.2%}" for row in found)
        lines.append(
            f"| {arm} | {'-'.join(map(str, (widths[0], *widths[1:][-1:])))} | {mean['epochs']:.0f} "
            f"| {mean['parameters']:,.0f} | {mean['macs']:,.0f} | {mean['error']:.2%} | {each} "
            f"| {mean['seconds']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def _each(width: Width) -> list[int]:
    return [width] if isinstance(width, int) else width


_NUMBERS = ("epochs", "parameters", "macs", "error", "seconds")

if __name__ == "__main__":
    main()
