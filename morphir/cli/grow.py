"""``morphir grow``: grow a network on data, and export it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn import functional

from exporters.registry import EXPORTERS
from morphir.cli.models import ModelSpec, check_classes
from morphir.cli.options import (
    Assignments,
    DataDir,
    DataOfNewRun,
    Device,
    Download,
    Limit,
    Model,
    Preset,
    Seed,
    Threads,
    Width,
)
from morphir.cli.output import print_table
from morphir.cli.runs import DataSpec, RunSpec, read_run, seed_network, sizes_of
from morphir.cli.settings import growth_config, placed
from morphir.cli.starting import StartingRun, check_free
from morphir.data import eval_loader, train_loader
from morphir.data.dataset import Dataset
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.report import REPORT_FILE, write_report
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.events import Event, PhaseEnded, RunEnded, RunStarted
from morphir.runtime.growing.growth import GrowthResult, grow
from morphir.runtime.storage.rundir import RunDirectory, read_config
from morphir.seeds import SEEDS
from morphir.seeds.layers import initialise


@dataclass(frozen=True)
class _Plan:
    """All that a run needs to know, whether it is new or goes on."""

    spec: RunSpec
    config: GrowthConfig
    dataset: Dataset
    out: Path
    resume: bool


def command(
    out: Annotated[
        Path, typer.Option(help="Run directory: new, or with --resume an old one.", show_default=False)
    ],
    model: Model = None,
    width: Width = None,
    data: DataOfNewRun = None,
    data_dir: DataDir = None,
    download: Download = False,
    limit: Limit = None,
    preset: Preset = None,
    assignments: Assignments = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPACE",
            help="A space to leave as it is, by name or pattern ('layer4.*'); may be given again.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file of options, or a run's config.json.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in --out.")] = False,
    device: Device = None,
    seed: Seed = None,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show warnings and errors alone.")] = False,
    export: Annotated[bool, typer.Option(help="Export PyTorch source and ONNX at the end.")] = True,
) -> None:
    """Grow a network on data: train, learn what to split and prune, rewrite, repeat; then train the result.

    The run directory holds everything: configuration, metrics, checkpoints, textual IR, rewrites, exports.
    A run that was stopped, in whatever way, continues with --resume.

    \b
    morphir grow --model vgg19 --width 8 --data digits --preset demo --out runs/demo
    morphir grow --model vgg19 --width 16 --data fashion-mnist --data-dir data --download --out runs/fashion
    morphir grow --model net.py:build --data imagefolder:photos --set phases=4 --out runs/photos
    morphir grow --out runs/fashion --resume
    """  # noqa: D301
    if resume:
        fixed = {"--model": model, "--width": width, "--data": data, "--limit": limit, "--preset": preset}
        fixed |= {"--set": assignments, "--keep": keep, "--config": config, "--seed": seed}
        _refuse_with_resume({**fixed, "--force": force or None})
        plan = _resumed(out, device, data_dir, threads, download=download)
    elif model is None or data is None:
        raise MorphirError("a new run needs --model and --data", hint="or --resume, to continue one")
    else:
        settings = placed(growth_config(preset, config, assignments or (), seed=seed, keep=keep), device)
        check_free(out, force=force)
        source = DataSpec(data=data, data_dir=data_dir, limit=limit)
        place = out.resolve() if force else out
        plan = _new(place, settings, model, width, source, threads, download=download)
    _run(plan, quiet=quiet, export=export)


def _refuse_with_resume(options: Mapping[str, object]) -> None:
    if given := [name for name, value in options.items() if value is not None]:
        raise MorphirError(
            f"{', '.join(given)} cannot be changed with --resume",
            hint="the run directory says it; leave it out, or start a new run",
        )


def _new(
    out: Path,
    config: GrowthConfig,
    model: str,
    width: int | None,
    source: DataSpec,
    threads: int | None,
    *,
    download: bool,
) -> _Plan:
    dataset = source.load(download=download)
    network = ModelSpec(model=model, width=width, **sizes_of(dataset)).absolute()
    spec = RunSpec(model=network, data=source.absolute(), threads=threads or torch.get_num_threads())
    return _Plan(spec, config, dataset, out, resume=False)


def _resumed(
    out: Path, device: str | None, data_dir: str | None, threads: int | None, *, download: bool
) -> _Plan:
    """What the run directory says, on this machine's device and with this machine's data directory."""
    spec = read_run(out)
    if not RunDirectory(out).config.exists():
        raise MorphirError(
            f"the run in {out} was killed before it started", hint="start it again, with --force"
        )
    config = placed(read_config(out), device)
    source = spec.data if data_dir is None else spec.data.model_copy(update={"data_dir": data_dir})
    spec = spec.model_copy(update={"threads": threads or spec.threads})
    return _Plan(spec, config, source.load(download=download), out, resume=True)


def _run(plan: _Plan, *, quiet: bool, export: bool) -> None:
    start = time.perf_counter()
    torch.set_num_threads(plan.spec.threads or torch.get_num_threads())
    torch.manual_seed(plan.config.seed)  # pyright: ignore[reportUnknownMemberType]
    graph = seed_network(plan.out) if plan.resume else plan.spec.model.trace()
    check_classes(graph, plan.spec.model.model, plan.spec.model.classes)
    result = (_continue if plan.resume else _start)(plan, graph, quiet=quiet)
    files = list(_export(graph, plan.out)) if export else []
    if not quiet:
        _print_summary(result, time.perf_counter() - start)
        if (plan.out / REPORT_FILE).exists():
            typer.echo(f"wrote {plan.out / REPORT_FILE}")
        for file in files:
            typer.echo(f"wrote {file}, verified")


def _start(plan: _Plan, graph: Graph, *, quiet: bool) -> GrowthResult:
    with StartingRun(plan.out) as directory:
        plan.spec.write(plan.out)  # first, so that what a killed run leaves is known for a run
        try:
            return _grow(plan, graph, directory.started, quiet=quiet)
        except KeyboardInterrupt as error:
            if directory.has_started:
                error.add_note(_how_to_continue(plan))
            raise


def _continue(plan: _Plan, graph: Graph, *, quiet: bool) -> GrowthResult:
    try:
        return _grow(plan, graph, partial(plan.spec.write, plan.out), quiet=quiet)
    except KeyboardInterrupt as error:
        error.add_note(_how_to_continue(plan))
        raise


def _how_to_continue(plan: _Plan) -> str:
    return f"continue with: morphir grow --out {plan.out} --resume"


def _grow(plan: _Plan, graph: Graph, started: Callable[[], None], *, quiet: bool) -> GrowthResult:
    config, device = plan.config, plan.config.device or "cpu"

    def note_start(event: Event) -> None:
        if isinstance(event, RunStarted):
            started()

    def report(event: Event) -> None:
        if isinstance(event, PhaseEnded | RunEnded):
            _write_report(plan.out)

    return grow(
        graph,
        train_loader(plan.dataset, config.batch_size, seed=config.seed, device=device),
        partial(functional.cross_entropy, reduction="none"),
        config=config,
        eval_data=eval_loader(plan.dataset, device=device),
        callbacks=(note_start, report),
        out=plan.out,
        resume=plan.resume,
        initialise=initialise if plan.spec.model.model in SEEDS else None,
        quiet=quiet,
        origin=plan.spec.model.model_dump(mode="json"),
    )


def _write_report(out: Path) -> None:
    """Writes the report; that it cannot be written ends no run."""
    try:
        write_report(out)
    except MorphirError as error:
        typer.echo(f"no report: {error}", err=True)


def _export(graph: Graph, out: Path) -> Iterator[Path]:
    graph.eval()
    for exporter in EXPORTERS.values():
        path = out / f"network{exporter.suffix}"
        exporter.export(graph, path)
        yield path


def _print_summary(result: GrowthResult, seconds: float) -> None:
    """The seed as it was after its first phase, beside the finished network."""
    if not result.phases:
        return
    first, last = result.phases[0], result.phases[-1]
    final = None if result.evaluation is None else result.evaluation.error
    print_table(
        f"the seed after phase {first.phase}, and the result",
        ("", ">parameters", ">MACs", ">test error", ">seconds"),
        [
            (
                "seed",
                first.parameters,
                first.macs,
                _percent(first.test_error),
                f"{first.seconds:.1f}",
            ),
            ("grown", last.next_parameters, last.next_macs, _percent(final), f"{seconds:.1f}"),
        ],
    )


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.2%}"
