"""``morphir fidelity``: estimates against brute force, and learners against each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from torch.nn import functional

from morphir.cli.fidelity_tables import draw, print_many, print_measured
from morphir.cli.models import check_classes
from morphir.cli.options import (
    Assignments,
    Data,
    DataDir,
    Device,
    Download,
    Limit,
    Preset,
    Seed,
    Subject,
    Threads,
    Width,
)
from morphir.cli.runs import DataSpec, is_run, load_subject, sizes_of
from morphir.cli.settings import growth_config, placed
from morphir.data import eval_loader, train_loader
from morphir.data.dataset import Dataset
from morphir.ir.graph import Graph
from morphir.runtime.fidelity.estimates import CALIBRATED, check_score
from morphir.runtime.fidelity.learners import PAPER, Problem
from morphir.runtime.fidelity.study import Measured, Study
from morphir.runtime.fidelity.together import Applied, together
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.recalibration import recalibrate
from morphir.runtime.growing.run_state import new_optimizer
from morphir.runtime.growing.training import LossMeter, Placement, evaluate, place, train_epoch
from morphir.runtime.learning.curvature import BENT, CURVATURES, curvature
from morphir.runtime.storage.files import cannot_write

_TRAIN_EPOCHS = 2
_CURVATURES = ", ".join(CURVATURES)
_CALIBRATED = f"{CALIBRATED}shrunk-fisher"
_Line = TypeVar("_Line", Measured, Applied)
_LOSS = partial(functional.cross_entropy, reduction="none")


def command(
    model: Subject,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the numbers and the figures.", show_default=False)],
    width: Width = None,
    data_dir: DataDir = None,
    download: Download = False,
    limit: Limit = None,
    train_epochs: Annotated[
        int | None,
        typer.Option(
            help=f"Epochs of training before; {_TRAIN_EPOCHS}, or 0 for a run.", min=0, show_default=False
        ),
    ] = None,
    learn_epochs: Annotated[int, typer.Option(help="Epochs of morphism learning.", min=1)] = 1,
    images: Annotated[int, typer.Option(help="Test images that the loss is measured on.", min=1)] = 2000,
    per_space: Annotated[
        int | None,
        typer.Option(
            help="Measure so many groups of a space, evenly spread; all if left out.",
            min=1,
            show_default=False,
        ),
    ] = None,
    learn: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Curvature to learn with: {_CURVATURES}; or {PAPER}, the paper's own learner. May be given "
            "again; all curvatures but none."
        ),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Curvature to score with, or {CALIBRATED}CURVATURE: its term times what is measured. "
            f"May be given again; all curvatures but none, and {_CALIBRATED}."
        ),
    ] = None,
    calibrations: Annotated[
        int, typer.Option(help="Passes over the test images for the factors of a calibrated score.", min=1)
    ] = 4,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Compare with steepest descent, expanded networks, random thetas."),
    ] = False,
    expanded_steps: Annotated[
        int, typer.Option(help="Training steps of each expanded network, for --baselines.", min=1)
    ] = 100,
    prunes: Annotated[bool, typer.Option(help="Measure prunes too.")] = True,
    many: Annotated[
        bool,
        typer.Option(
            "--many", help="Measure a growth run's whole selection, applied at once, and nothing else."
        ),
    ] = False,
    preset: Preset = None,
    assignments: Assignments = None,
    device: Device = None,
    seed: Seed = None,
    threads: Threads = None,
) -> None:
    """Measure how close the estimates are to the truth, and what each way to learn theta truly gains.

    The network is trained; theta is learned for all splits at once, by each curvature; then every morphism is
    applied alone and the network evaluated on test images. The table has, for each channel space, relative
    error (sum of absolute errors over sum of absolute changes), slope and rank correlation of the estimates.

    \b
    morphir fidelity vgg19 --width 16 --data fashion-mnist --data-dir data --out runs/fidelity
    morphir fidelity vgg19 --width 8 --data digits --per-space 4 --baselines --out runs/fidelity-digits
    morphir fidelity vgg19 --width 8 --data digits --many --out runs/fidelity-together
    morphir fidelity runs/demo --data digits --set theta_lr=0.02 --out runs/fidelity-demo
    """  # noqa: D301
    study = Study(
        _learners(learn), _scores(score), baselines, prunes, per_space, expanded_steps, calibrations
    )
    config = placed(growth_config(preset, None, assignments or (), seed=seed), device)
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.manual_seed(config.seed)  # pyright: ignore[reportUnknownMemberType]
    dataset = DataSpec(data=data, data_dir=data_dir, limit=limit).load(download=download)
    graph = _graph(model, width, dataset)
    _make_folder(out)
    epochs = (0 if is_run(model) else _TRAIN_EPOCHS) if train_epochs is None else train_epochs
    problem = _trained(graph, dataset, config, epochs, learn_epochs)
    held_back = _held_back(problem, dataset, images)
    if many:
        _measure_many(problem, held_back, out)
    else:
        _measure(problem, study, held_back, out)


def _learners(names: Sequence[str] | None) -> list[str]:
    """Returns what theta is to be learned against; all curvatures but ``none`` where nothing was named."""
    for name in names or ():
        if name != PAPER:
            curvature(name)
    return list(names or BENT)


def _scores(names: Sequence[str] | None) -> list[str]:
    """Returns the scores that were named; all curvatures but ``none``, and a calibrated one, if none was."""
    return [check_score(name) for name in names or (*BENT, _CALIBRATED)]


def _make_folder(out: Path) -> None:
    """Makes the folder before anything is trained for it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error


def _graph(name: str, width: int | None, dataset: Dataset) -> Graph:
    graph = load_subject(name, width=width, **sizes_of(dataset))
    check_classes(graph, name, dataset.classes)
    return graph


def _trained(graph: Graph, dataset: Dataset, config: GrowthConfig, epochs: int, learn_epochs: int) -> Problem:
    """Trains the network, and returns what is to be learned on it."""
    placement = Placement(torch.device(config.device or "cpu"), config.amp, config.channels_last)
    place(graph, placement)
    _train(graph, dataset, config, placement, epochs)
    batches = partial(_epoch, dataset, config, placement)
    recalibrate(graph, batches(0), placement, config.recalibration_batches)
    return Problem(graph, (), batches, _LOSS, placement, config, learn_epochs)


def _epoch(dataset: Dataset, config: GrowthConfig, placement: Placement, epoch: int) -> Any:
    loader = train_loader(dataset, config.batch_size, seed=config.seed + 1, device=placement.device)
    loader.set_epoch(epoch)
    return loader


def _train(graph: Graph, dataset: Dataset, config: GrowthConfig, placement: Placement, epochs: int) -> None:
    optimizer = new_optimizer(graph, config)
    for epoch in range(epochs):
        loader = train_loader(dataset, config.batch_size, seed=config.seed, device=placement.device)
        loader.set_epoch(epoch)
        meter = LossMeter(f"epoch {epoch + 1}", config.check_every)
        train_epoch(graph, loader, _LOSS, optimizer, placement, meter)
        typer.echo(f"epoch {epoch + 1}: training loss {meter.mean():.4f}")


def _held_back(problem: Problem, dataset: Dataset, images: int) -> list[Any]:
    """Returns the test batches that the truth is measured on, and prints how good the network is on them."""
    batches = eval_loader(dataset, device=problem.placement.device)
    held_back = list(islice(batches, -(-images // batches.batch_size)))
    found = evaluate(problem.graph, held_back, _LOSS, problem.placement)
    error = "" if found.error is None else f", error {found.error:.2%}"
    typer.echo(f"test loss {found.loss:.4f}{error} on {found.samples} images")
    return held_back


def _measure(problem: Problem, study: Study, held_back: Sequence[Any], out: Path) -> None:
    found = study.run(problem, held_back, progress=typer.echo)
    measured = list(_kept(found, out / "morphisms.jsonl"))
    draw(out, measured, study)
    typer.echo(f"wrote {out}")
    print_measured(measured, study)


def _measure_many(problem: Problem, held_back: Sequence[Any], out: Path) -> None:
    trial: list[Any] = list(islice(problem.batches(0), problem.config.trial_batches))
    print_many(list(_kept(together(problem, trial, held_back), out / "together.jsonl")))


def _kept(measured: Iterable[_Line], path: Path) -> Iterator[_Line]:
    """Writes each line as it comes: a study takes long, and what it found stays when it is stopped."""
    with path.open("w", encoding="utf-8") as file:
        for item in measured:
            file.write(json.dumps(asdict(item)) + "\n")
            file.flush()
            yield item
