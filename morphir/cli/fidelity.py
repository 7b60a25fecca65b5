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

from morphir.cli.models import check_classes
from morphir.cli.options import Subject, Threads, Width
from morphir.cli.output import print_table
from morphir.cli.runs import DataSpec, is_run, load_subject
from morphir.cli.settings import growth_config, placed
from morphir.data import eval_loader, train_loader
from morphir.data.dataset import Dataset
from morphir.ir.graph import Graph
from morphir.runtime.fidelity.learners import Problem
from morphir.runtime.fidelity.plots import plot_estimates, plot_gains
from morphir.runtime.fidelity.study import PRUNES, Measured, Study, agreement, by_space
from morphir.runtime.fidelity.together import Applied, together
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.recalibration import recalibrate
from morphir.runtime.growing.run_state import new_optimizer
from morphir.runtime.growing.training import LossMeter, Placement, evaluate, train_epoch
from morphir.runtime.learning.curvature import CURVATURES, curvature
from morphir.runtime.storage.files import cannot_write, write_atomic

_TRAIN_EPOCHS = 2
_Line = TypeVar("_Line", Measured, Applied)
_LOSS = partial(functional.cross_entropy, reduction="none")


def command(
    model: Subject,
    data: Annotated[str, typer.Option(help="digits, fashion-mnist, cifar10, cifar100 or imagefolder:DIR.")],
    out: Annotated[Path, typer.Option(help="Folder for the table, the figures and the numbers.")],
    width: Width = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Where the data's files lie.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use the first so many training images only.", show_default=False)
    ] = None,
    train_epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of training before; 2, or 0 for a run.", min=0, show_default=False),
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
        typer.Option(help="Curvature to learn with; may be given again. All but none if left out."),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(help="Curvature to score with; may be given again. All but none if left out."),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Compare with steepest descent, expanded networks, random thetas."),
    ] = False,
    prunes: Annotated[bool, typer.Option(help="Measure prunes too.")] = True,
    many: Annotated[
        bool,
        typer.Option(
            "--many", help="Measure a growth run's whole selection, applied at once, and nothing else."
        ),
    ] = False,
    preset: Annotated[str, typer.Option(help="Whose learning rates and batch size are used.")] = "laptop",
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="One option of the configuration.", show_default=False
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto; auto if left out.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds every random choice.")] = 0,
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
    chosen = [name for name in CURVATURES if name != "none"]
    study = Study(_known(learn) or chosen, _known(score) or chosen, baselines, prunes, per_space)
    config = placed(growth_config(preset, None, assignments or (), seed=seed), device)
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    dataset = DataSpec(data=data, data_dir=data_dir, limit=limit).load()
    graph = _graph(model, width, dataset)
    placement = Placement(torch.device(config.device or "cpu"))
    graph.to(placement.device)
    _make_folder(out)
    epochs = (0 if is_run(model) else _TRAIN_EPOCHS) if train_epochs is None else train_epochs
    _train(graph, dataset, config, placement, epochs)
    recalibrate(graph, _epoch(dataset, config, placement, 0), placement, config.recalibration_batches)
    batches = eval_loader(dataset, device=placement.device)
    held_back = list(islice(batches, -(-images // batches.batch_size)))
    typer.echo(_evaluation(graph, held_back, placement))
    problem = Problem(
        graph,
        (),
        partial(_epoch, dataset, config, placement),
        _LOSS,
        placement,
        epochs=learn_epochs,
        optimizer=config.theta_optimizer,
        lr=config.theta_lr,
        absolute_lr=config.theta_lr_absolute,
        schedule=config.theta_lr_schedule,
        scale=config.theta_scale,
        seed=seed,
    )
    if many:
        trial: list[Any] = list(islice(_epoch(dataset, config, placement, 0), config.trial_batches))
        _print_many(list(_kept(together(problem, config, trial, held_back), out / "together.jsonl")))
        return
    measured = list(_kept(study.run(problem, held_back, progress=typer.echo), out / "morphisms.jsonl"))
    _draw(out, measured, study)
    _print(measured, study)


def _known(names: Sequence[str] | None) -> list[str]:
    for name in names or ():
        curvature(name)
    return list(names or ())


def _make_folder(out: Path) -> None:
    """Makes the folder before anything is trained for it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error


def _graph(name: str, width: int | None, dataset: Dataset) -> Graph:
    sizes = {"channels": dataset.channels, "classes": dataset.classes, "image_size": dataset.image_size}
    graph = load_subject(name, width=width, **sizes)
    check_classes(graph, name, dataset.classes)
    return graph


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


def _evaluation(graph: Graph, held_back: Any, placement: Placement) -> str:
    found = evaluate(graph, held_back, _LOSS, placement)
    error = "" if found.error is None else f", error {found.error:.2%}"
    return f"test loss {found.loss:.4f}{error} on {found.samples} images"


def _kept(measured: Iterable[_Line], path: Path) -> Iterator[_Line]:
    """Writes each line as it comes: a study takes long, and what it found stays when it is stopped."""
    with path.open("w", encoding="utf-8") as file:
        for item in measured:
            file.write(json.dumps(asdict(item)) + "\n")
            file.flush()
            yield item


def _draw(out: Path, measured: Sequence[Measured], study: Study) -> None:
    learner = study.curvatures[0]
    shown = [item for item in measured if item.learner in {learner, PRUNES}]
    for score in study.scores:
        write_atomic(out / f"estimates-{score}.svg", plot_estimates(shown, score))
    write_atomic(out / "gains.svg", plot_gains(_gains(measured)))
    typer.echo(f"wrote {out}")


def _gains(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Returns each learner's mean true change in each space."""
    return {
        learner: {
            space: sum(item.truth for item in items) / len(items)
            for space, items in by_space([m for m in measured if m.learner == learner]).items()
        }
        for learner in dict.fromkeys(m.learner for m in measured)
        if learner != PRUNES
    }


def _print(measured: Sequence[Measured], study: Study) -> None:
    gains = _gains(measured)
    spaces = list(by_space(measured))
    for learner in dict.fromkeys(m.learner for m in measured):
        own = by_space([m for m in measured if m.learner == learner])
        print_table(
            f"{'prunes' if learner == PRUNES else f'splits learned by {learner}'}: "
            "relative error / slope / rank correlation of each score",
            ("space", ">n", *(f">{score}" for score in study.scores)),
            [
                (space, len(own[space]), *(_cell(own[space], s) for s in study.scores))
                for space in spaces
                if space in own
            ],
        )
    print_table(
        "mean true change of the loss by a split",
        ("space", *(f">{learner}" for learner in gains)),
        [
            *(
                (space, *(f"{own.get(space, float('nan')):+.5f}" for own in gains.values()))
                for space in spaces
            ),
            ("sum over all splits", *(f"{_sum(measured, learner):+.4f}" for learner in gains)),
            ("spaces that it raises", *(str(sum(v > 0 for v in own.values())) for own in gains.values())),
        ],
    )


def _print_many(found: Sequence[Applied]) -> None:
    print_table(
        "a whole selection at once: changes of the loss",
        (
            "plan",
            ">splits",
            ">prunes",
            ">theta times",
            ">sum of estimates",
            ">joint estimate",
            ">truth",
            ">price",
        ),
        [
            (
                item.plan,
                item.splits,
                item.prunes,
                f"{item.factor:g}",
                *(f"{value:+.4f}" for value in (item.predicted, item.joint, item.truth, item.price)),
            )
            for item in found
        ],
    )


def _sum(measured: Sequence[Measured], learner: str) -> float:
    return sum(item.truth for item in measured if item.learner == learner)


def _cell(items: Sequence[Measured], score: str) -> str:
    if not any(score in item.estimates for item in items):
        return "-"
    found = agreement(items, score)
    rank = "-" if found.rank is None else f"{found.rank:.2f}"
    return f"{100 * found.relative_error:.0f} % / {found.slope:.2f} / {rank}"
