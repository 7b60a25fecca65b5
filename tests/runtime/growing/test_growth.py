from __future__ import annotations

import errno
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from morphir.analysis.cost import cost
from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.events import (
    CheckpointWritten,
    EpochEnded,
    EpochStarted,
    Event,
    GraphRewritten,
    PhaseEnded,
    Reinitialised,
    RunEnded,
    RunStarted,
    StepsDone,
    Warned,
)
from morphir.runtime.growing.growth import GrowthResult, grow
from morphir.runtime.growing.training import NonFiniteLossError
from morphir.runtime.history.store import HistoryStore
from morphir.runtime.learning.learner import Learner, Score
from morphir.runtime.storage import checkpoint as checkpoint_module
from morphir.runtime.storage.checkpoint import checkpoints
from morphir.runtime.storage.metrics import read_metrics

CONFIG = GrowthConfig(
    phases=2,
    train_epochs=2,
    learn_epochs=2,
    lr=0.05,
    lr_schedule="constant",
    theta_lr=0.2,
    ema=0.2,
    lambda_parameters=2e-4,
    final_epochs=2,
    final_lr=0.1,
    check_every=2,
    batch_norm_batches=2,
)


def network(activation: nn.Module | None = None) -> Graph:
    """A small network; dropout draws random numbers in each training step."""
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        activation or nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(6, 3),
    )
    return trace(model, torch.zeros(2, 1, 8, 8))


def dataset() -> TensorDataset:
    """Three classes of noisy stripes."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(60) % 3
    images = torch.randn(60, 1, 8, 8, generator=generator) * 0.5
    for sample, target in enumerate(targets.tolist()):
        images[sample, :, :: target + 1] += 1.0
    return TensorDataset(images, targets)


def loader() -> DataLoader[Any]:
    """Shuffles with torch's global generator."""
    return DataLoader(dataset(), batch_size=12, shuffle=True)


def run(out: Path | None = None, *, graph: Graph | None = None, **options: Any) -> GrowthResult:
    options = {"config": CONFIG, "eval_data": DataLoader(dataset(), batch_size=30), "quiet": True, **options}
    return grow(graph or network(), loader(), functional.cross_entropy, out=out, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> GrowthResult:
    return run(tmp_path_factory.mktemp("runs") / "whole")


def assert_same_run(result: GrowthResult, expected: GrowthResult) -> None:
    """Bit for bit: weights, optimizer, history, and metrics but for seconds."""
    assert_same_tensors(result.graph.state_dict(), expected.graph.state_dict())
    assert [str(r) for r in result.graph.history] == [str(r) for r in expected.graph.history]
    assert {k: s.width for k, s in result.graph.spaces.items()} == {
        k: s.width for k, s in expected.graph.spaces.items()
    }
    ours, theirs = result.optimizer.state_dict(), expected.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index in ours["state"]:
        assert_same_tensors(ours["state"][index], theirs["state"][index])
    assert without_seconds(result) == without_seconds(expected)
    assert result.evaluation == expected.evaluation


def assert_same_tensors(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key


def without_seconds(result: GrowthResult) -> list[dict[str, Any]]:
    assert result.directory is not None
    lines = read_metrics(result.directory / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_grows_and_trains(uninterrupted: GrowthResult) -> None:
    result = uninterrupted
    seed = network()
    assert result.graph.history
    assert any(result.graph.spaces[name].width != space.width for name, space in seed.spaces.items())
    assert result.evaluation is not None
    assert result.evaluation.error is not None
    assert result.evaluation.error < 0.5
    assert [record.stage for record in result.phases] == ["grow", "grow", "final"]
    held = {id(p) for group in result.optimizer.param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in result.graph.parameters()}


def test_phase_records_add_up(uninterrupted: GrowthResult) -> None:
    records = uninterrupted.phases
    first = cost(network())
    assert (records[0].parameters, records[0].macs) == (first.parameters, first.macs)
    for one, two in itertools.pairwise(records):
        assert (one.next_parameters, one.next_macs, one.next_widths) == (two.parameters, two.macs, two.widths)
    assert records[-1].parameters == sum(p.numel() for p in uninterrupted.graph.parameters())
    applied = [m for rewrite in uninterrupted.graph.history for m in rewrite.morphisms]
    assert sum(r.splits for r in records) == sum(m.startswith("split") for m in applied)
    assert sum(r.prunes for r in records) == sum(m.startswith("prune") for m in applied)
    assert sum(r.splits for r in records) > 0


def test_run_directory_holds_everything(uninterrupted: GrowthResult) -> None:
    out = uninterrupted.directory
    assert out is not None
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"config.json", "metrics.jsonl", "history/actions.jsonl", "widths.svg"} <= names
    assert {f"ir/phase-0{phase}.txt" for phase in range(3)} <= names
    assert {"remarks/phase-01.json", "remarks/phase-02.json", "program.json"} <= names
    assert {"scores/phase-01.json", "scores/phase-02.json"} <= names
    assert [place.name for place in checkpoints(out / "checkpoints")] == ["000009", "000010"]
    rewrites = [action.rewrite for action in HistoryStore.read(out / "history").actions if action.rewrite]
    assert [str(r) for r in rewrites] == [str(r) for r in uninterrupted.graph.history]
    assert [line["epoch"] for line in read_metrics(out / "metrics.jsonl", "epoch")] == list(range(1, 11))
    assert len(read_metrics(out / "metrics.jsonl", "phase")) == 3


def test_directory_and_quiet_change_nothing(uninterrupted: GrowthResult) -> None:
    assert_same_tensors(run(quiet=False).graph.state_dict(), uninterrupted.graph.state_dict())


class Killed(BaseException):
    """The process is gone."""


def kill_when(condition: Callable[[Event], bool]) -> Callable[[Event], None]:
    def callback(event: Event) -> None:
        if condition(event):
            raise Killed

    return callback


KILLS: dict[str, Callable[[Event], bool]] = {
    "before the first epoch": lambda e: isinstance(e, RunStarted),
    "in training": lambda e: isinstance(e, StepsDone) and e.slot.index == 1,
    "between training and learning": lambda e: isinstance(e, EpochStarted) and e.slot.index == 2,
    "in the first epoch of learning": lambda e: isinstance(e, StepsDone) and e.slot.index == 2,
    "in the second epoch of learning": lambda e: isinstance(e, StepsDone) and e.slot.index == 3,
    "before a rewrite": lambda e: isinstance(e, EpochEnded) and e.slot.index == 3,
    "after a rewrite": lambda e: isinstance(e, GraphRewritten) and e.phase == 1,
    "after a phase": lambda e: isinstance(e, PhaseEnded) and e.record.phase == 2,
    "in learning after a rewrite": lambda e: isinstance(e, StepsDone) and e.slot.index == 7,
    "after new weights": lambda e: isinstance(e, Reinitialised),
    "in the final training": lambda e: isinstance(e, StepsDone) and e.slot.index == 9,
    "after the last checkpoint": lambda e: isinstance(e, CheckpointWritten) and e.position == 10,
}


@pytest.mark.parametrize("when", KILLS)
def test_resumes_bit_for_bit(tmp_path: Path, uninterrupted: GrowthResult, when: str) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "run", callbacks=[kill_when(KILLS[when])])
    torch.manual_seed(99)
    assert_same_run(run(tmp_path / "run", resume=True), uninterrupted)


@pytest.mark.parametrize("position", [1, 3, 8])
def test_resumes_after_a_kill_while_writing(
    tmp_path: Path, uninterrupted: GrowthResult, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    """Between the last byte of the temporary directory and its renaming."""
    rename = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == f"{position:06d}":
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module.os, "replace", killed)
        with pytest.raises(Killed):
            run(tmp_path / "run")
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"{position - 1:06d}"
    assert_same_run(run(tmp_path / "run", resume=True), uninterrupted)


def test_resumes_what_was_stopped_before_its_first_checkpoint(
    tmp_path: Path, uninterrupted: GrowthResult
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "run", callbacks=[kill_when(KILLS["in training"])])
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(MorphirError, match="had begun, but .*checkpoints holds no checkpoint\n.*put its"):
        run(tmp_path / "run", resume=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("")  # as it is before the first epoch's end
    assert_same_run(run(tmp_path / "run", resume=True), uninterrupted)


def test_resumes_twice(tmp_path: Path, uninterrupted: GrowthResult) -> None:
    for index, resume in ((3, False), (7, True)):
        with pytest.raises(Killed):
            run(
                tmp_path / "run",
                resume=resume,
                callbacks=[kill_when(lambda e, i=index: isinstance(e, StepsDone) and e.slot.index == i)],
            )
    assert_same_run(run(tmp_path / "run", resume=True), uninterrupted)


def test_truncated_checkpoint_falls_back_and_the_run_is_the_same(
    tmp_path: Path, uninterrupted: GrowthResult
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "run", callbacks=[kill_when(KILLS["in learning after a rewrite"])])
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1] / "learner.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4])
    events: list[Event] = []
    result = run(tmp_path / "run", resume=True, callbacks=[events.append])
    assert [e.message for e in events if isinstance(e, Warned)] == [
        f"checkpoint {newest.parent} is damaged: learner.safetensors is truncated or was changed; "
        "going back to the one before"
    ]
    assert_same_run(result, uninterrupted)


def test_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, uninterrupted: GrowthResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint_module.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.parent.name == ".new-000003" and path.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_bytes", full)
        with pytest.raises(
            MorphirError,
            match="cannot write .*000003: No space left on device\n.*free some space, .*, then resume: the",
        ):
            run(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] in (
        ["000001", "000002"],
        ["000002", "000001"],
    )
    assert_same_run(run(tmp_path / "run", resume=True), uninterrupted)


def test_resumes_a_loader_with_its_own_generator(tmp_path: Path) -> None:
    def shuffled() -> DataLoader[Any]:
        return DataLoader(dataset(), batch_size=12, shuffle=True, generator=torch.Generator().manual_seed(4))

    def once(out: Path, **options: Any) -> GrowthResult:
        return grow(
            network(), shuffled(), functional.cross_entropy, config=CONFIG, out=out, quiet=True, **options
        )

    whole = once(tmp_path / "whole")
    with pytest.raises(Killed):
        once(tmp_path / "run", callbacks=[kill_when(KILLS["in the second epoch of learning"])])
    resumed = once(tmp_path / "run", resume=True)
    assert_same_tensors(resumed.graph.state_dict(), whole.graph.state_dict())


def test_resumes_the_users_own_adam(tmp_path: Path) -> None:
    def once(out: Path, **options: Any) -> GrowthResult:
        graph = network()
        decay = [p for p in graph.parameters() if p.dim() > 1]
        rest = [p for p in graph.parameters() if p.dim() <= 1]
        groups = [{"params": rest, "lr": 0.02}, {"params": decay, "weight_decay": 1e-2}]
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        config = CONFIG.model_copy(update={"final": "fine-tune"})
        return run(out, graph=graph, optimizer=optimizer, config=config, **options)

    whole = once(tmp_path / "whole")
    assert [group["lr"] for group in whole.optimizer.param_groups] != [0.02, 0.01]
    with pytest.raises(Killed):
        once(tmp_path / "run", callbacks=[kill_when(KILLS["in learning after a rewrite"])])
    assert_same_run(once(tmp_path / "run", resume=True), whole)


def test_resume_refuses_another_configuration_or_network(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "run", callbacks=[kill_when(KILLS["in training"])])
    other = CONFIG.model_copy(update={"lr": 0.5})
    with pytest.raises(MorphirError, match=r"another configuration \(lr: 0.05 then, 0.5 now\)"):
        run(tmp_path / "run", resume=True, config=other)
    wider = trace(nn.Sequential(nn.Conv2d(1, 5, 3), nn.Flatten(), nn.Linear(180, 3)), torch.zeros(2, 1, 8, 8))
    with pytest.raises(MorphirError, match="another network"):
        run(tmp_path / "run", resume=True, graph=wider)


def test_directory_errors(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MorphirError, match="not empty\n.*--resume"):
        run(tmp_path)
    with pytest.raises(MorphirError, match="no run to resume"):
        run(tmp_path / "nothing", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("index", "where"), [(1, "epoch 2 .phase 1, train 2/2"), (2, "epoch 3 .phase 1, learn 1/2")]
)
def test_nan_loss_stops_and_names_the_step(tmp_path: Path, index: int, where: str) -> None:
    calls = {"epoch": -1, "step": 0}

    def note(event: Event) -> None:
        if isinstance(event, EpochStarted):
            calls.update(epoch=event.slot.index, step=0)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        value = functional.cross_entropy(outputs, targets)
        calls["step"] += torch.is_grad_enabled()  # trials of the loss are no steps
        return value * math.nan if calls["epoch"] == index and calls["step"] == 3 else value

    with pytest.raises(NonFiniteLossError, match=rf"the loss is nan at step 3 of {where}") as caught:
        grow(network(), loader(), loss, config=CONFIG, out=tmp_path / "run", callbacks=[note], quiet=True)
    assert "hint: lower the learning rate" in str(caught.value)
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"{index:06d}"


def test_nan_test_loss_stops_and_names_the_epoch(tmp_path: Path) -> None:
    evaluation = [(torch.full((2, 1, 8, 8), math.nan), torch.zeros(2, dtype=torch.int64))]
    with pytest.raises(NonFiniteLossError, match="the test loss is nan after epoch 1 .*train 1/2") as caught:
        run(tmp_path / "run", eval_data=evaluation)
    assert "hint: lower the learning rate" in str(caught.value)
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["000000"]


def once_only() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([], "training data is empty"),
        (None, "the training data is a NoneType, not batches"),
        (once_only(), "read only once"),
        ([torch.zeros(2, 1, 8, 8)], "no pair of inputs and targets in the first batch of the training data"),
        (
            [(torch.zeros(2, 1, 8, 8), torch.tensor([0, 3]))],
            "wrong number of classes: the model has 3 outputs",
        ),
        (
            [(torch.zeros(2, 2, 8, 8), torch.tensor([0, 1]))],
            "the model fails on the first batch of the training data",
        ),
        ([(torch.zeros(2, 1, 8, 8), torch.zeros(5, dtype=torch.int64))], "the loss fails on the first batch"),
    ],
)
def test_data_that_does_not_fit(tmp_path: Path, data: Any, match: str) -> None:
    with pytest.raises(MorphirError, match=match):
        grow(network(), data, functional.cross_entropy, config=CONFIG, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_wrong_class_in_a_later_batch(tmp_path: Path) -> None:
    batch = torch.zeros(2, 1, 8, 8)
    data = [(batch, torch.tensor([0, 1])), (batch, torch.tensor([0, 3]))]
    with pytest.raises(MorphirError, match="wrong number of classes"):
        grow(network(), data, functional.cross_entropy, config=CONFIG, quiet=True)


GOOD = (torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))
WRONG_CHANNELS = (torch.zeros(2, 2, 8, 8), torch.tensor([0, 1]))
EMPTY = (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))
TOO_FEW_TARGETS = (torch.zeros(2, 1, 8, 8), torch.tensor([0]))


@pytest.mark.parametrize(
    ("second", "match"),
    [
        (WRONG_CHANNELS, r"the model fails on batch 2 of {} \(\(2, 2, 8, 8\) float32\): .*channels"),
        (EMPTY, "there is no sample in batch 2 of {}\n.*leave empty batches out"),
        (
            TOO_FEW_TARGETS,
            r"the loss fails on batch 2 of {} \(outputs \(2, 3\) float32, targets \(1,\) int64\)",
        ),
        ((*GOOD, GOOD[1]), "there is no pair of inputs and targets in batch 2 of {}"),
        (None, r"there is no pair of inputs and targets in batch 2 of {} \(NoneType\)"),
    ],
)
@pytest.mark.parametrize("stage", ["train", "learn", "evaluation"])
def test_a_later_batch_that_does_not_fit_is_named_with_its_epoch(stage: str, second: Any, match: str) -> None:
    config = CONFIG.model_copy(update={"train_epochs": int(stage != "learn"), "recalibration_batches": 0})
    where = {"train": "epoch 1 .phase 1, train 1/1.", "learn": "epoch 1 .phase 1, learn 1/2."}
    data, good = [GOOD, second], [GOOD]
    train, held_back = (good, data) if stage == "evaluation" else (data, good)
    with pytest.raises(MorphirError, match=match.format(where.get(stage, "the evaluation data"))) as caught:
        grow(network(), train, functional.cross_entropy, config=config, eval_data=held_back, quiet=True)
    assert not isinstance(caught.value, NonFiniteLossError)
    assert (caught.value.__cause__ is not None) == any(
        second is bad for bad in (WRONG_CHANNELS, TOO_FEW_TARGETS)
    )


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (None, "the loss is a NoneType, not a function"),
        (lambda outputs, targets: outputs, r"the loss has shape \(12, 3\) for 12 samples"),
        (lambda outputs, targets: 0.5, "returns a float"),
        (lambda outputs, targets: outputs.argmax(), "not floating point"),
        (partial(functional.cross_entropy, reduction="sum"), "a sum over the batch"),
    ],
)
def test_losses_that_are_none(loss: Any, match: str) -> None:
    with pytest.raises(MorphirError, match=match):
        grow(network(), loader(), loss, config=CONFIG, quiet=True)


def test_an_optimizer_whose_state_is_unknown_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    graph = network()
    before = {key: tensor.clone() for key, tensor in graph.state_dict().items()}
    with pytest.raises(MorphirError, match="does not know the state of Adadelta"):
        run(tmp_path / "run", graph=graph, optimizer=torch.optim.Adadelta(graph.parameters()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in graph.state_dict().items())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"callbacks": None}, "the callbacks are a NoneType, not a list of functions"),
        ({"callbacks": print}, "the callbacks are a builtin_function_or_method, not a list"),
        ({"callbacks": ["progress"]}, "the callbacks are a list, not a list of functions"),
        ({"optimizer": "sgd"}, "the optimizer is a str, not a torch.optim.Optimizer"),
        ({"resume": True}, "resume=True, but no run is named"),
    ],
)
def test_arguments_that_are_none(options: dict[str, Any], match: str) -> None:
    with pytest.raises(MorphirError, match=match):
        run(**options)


@pytest.mark.parametrize(
    ("name", "match"), [("cuda:7", "no device 'cuda:7'.*\n.*available: cpu"), ("gpu", "not a device")]
)
def test_devices_that_are_not_there(name: str, match: str) -> None:
    with pytest.raises(MorphirError, match=match):
        run(config=CONFIG.model_copy(update={"device": name}))


def test_per_sample_loss_is_the_same_run(uninterrupted: GrowthResult) -> None:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    config = CONFIG.model_copy(update={"phases": 0, "final": "fine-tune"})
    ours = grow(network(), loader(), loss, config=config, quiet=True)
    theirs = grow(network(), loader(), functional.cross_entropy, config=config, quiet=True)
    for key, tensor in ours.graph.state_dict().items():
        torch.testing.assert_close(tensor, theirs.graph.state_dict()[key], rtol=1e-4, atol=1e-6)


def test_retraining_starts_from_new_weights() -> None:
    config = CONFIG.model_copy(
        update={
            "phases": 0,
            "final_epochs": 1,
            "lr": 1e-12,
            "final_lr": None,
            "final_lr_schedule": "constant",
        }
    )
    seed = network()
    tuned = run(config=config.model_copy(update={"final": "fine-tune"})).graph
    torch.testing.assert_close(tuned.get_parameter("0.weight"), seed.get_parameter("0.weight"))
    retrained = run(config=config).graph
    assert (retrained.get_parameter("0.weight") - seed.get_parameter("0.weight")).abs().min() > 1e-9
    again = run(config=config).graph
    assert torch.equal(again.get_parameter("0.weight"), retrained.get_parameter("0.weight"))
    zeros = run(config=config, initialise=lambda model: [nn.init.zeros_(p) for p in model.parameters()]).graph
    torch.testing.assert_close(zeros.get_parameter("0.weight"), torch.zeros(4, 1, 3, 3))


def test_a_network_never_grows_past_its_budget() -> None:
    config = CONFIG.model_copy(update={"lambda_parameters": 0.0, "prunes": False, "max_parameters": 420})
    sizes: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, PhaseEnded):
            sizes.append(event.record.next_parameters)

    seed = sum(p.numel() for p in network().parameters())
    run(config=config, callbacks=[note])
    assert seed < sizes[-1] <= 420


def rewritten(keep: tuple[str, ...]) -> set[str]:
    result = run(config=CONFIG.model_copy(update={"keep": keep, "lambda_parameters": 0.0}))
    return {own.space for rewrite in result.graph.history for own in rewrite.maps}


def test_scores_are_calibrated_before_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On so many batches, after a phase's learning."""
    learners: list[Learner] = []
    calibrate = Learner.calibrate

    def counting(learner: Learner, inputs: Any, targets: Any) -> None:
        learners.append(learner)
        calibrate(learner, inputs, targets)

    monkeypatch.setattr(Learner, "calibrate", counting)
    monkeypatch.setattr("morphir.runtime.learning.calibration._FEWEST", 2)
    config = CONFIG.model_copy(update={"calibration_batches": 3, "phases": 1, "score_curvature": "batch"})
    scores: list[Score] = []

    def note(event: Event) -> None:
        if isinstance(event, GraphRewritten):
            assert learners == learners[:1] * 3
            scores.extend(event.scores)
            state = learners[0].state_dict()
            second, first = (torch.as_tensor(state[name]) for name in ("second_order", "first_order"))
            plain = sorted(((first + second) / torch.as_tensor(state["weight"])).tolist())
            assert sorted(score.delta_loss for score in event.scores) != pytest.approx(plain, rel=1e-4)

    loss = partial(functional.cross_entropy, reduction="none")
    grow(network(), loader(), loss, config=config, quiet=True, callbacks=[note])
    assert scores
    told: list[Event] = []
    with pytest.raises(MorphirError, match='(?s)loss function returns their mean.*reduction="none"'):
        run(tmp_path / "mean", config=config, callbacks=[told.append])
    assert told == []
    with pytest.raises(MorphirError, match="calibration_batches needs a score_curvature"):
        GrowthConfig(calibration_batches=1, score_curvature="none")


def test_a_network_that_cannot_be_calibrated_is_refused_before_anything_is_learned() -> None:
    """A norm by the batch's own statistics mixes the samples."""
    graph = trace(
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        torch.zeros(2, 1, 8, 8),
    )
    config = CONFIG.model_copy(update={"calibration_batches": 3})
    told: list[Event] = []
    loss = partial(functional.cross_entropy, reduction="none")
    with pytest.raises(MorphirError, match="samples that do not depend on each other"):
        grow(graph, loader(), loss, config=config, quiet=True, callbacks=[told.append])
    assert not any(isinstance(event, GraphRewritten) for event in told)


def test_kept_spaces_stay_as_they_are() -> None:
    assert rewritten(()) == {"0", "3"}
    assert rewritten(("0",)) == {"3"}
    assert rewritten(("[1-3]",)) == {"0"}


@pytest.mark.parametrize(
    ("keep", "match"),
    [
        (("features.0",), "no channel space is called 'features.0'"),
        (("[0-9]",), "every channel space is kept"),
    ],
)
def test_patterns_that_keep_nothing_or_all(tmp_path: Path, keep: tuple[str, ...], match: str) -> None:
    with pytest.raises(MorphirError, match=match):
        run(tmp_path / "run", config=CONFIG.model_copy(update={"keep": keep}))
    assert not (tmp_path / "run").exists()


def test_splits_keep_the_function_and_the_batch_statistics() -> None:
    """The graph computes the same right after a phase whose only morphisms are splits with theta near 0."""
    config = CONFIG.model_copy(
        update={
            "phases": 1,
            "theta_factors": (1e-9,),
            "theta_halvings": 0,
            "plan_halvings": 0,
            "prunes": False,
            "final": "none",
            "lambda_parameters": 0.0,
        }
    )
    images, _ = dataset().tensors
    before: list[torch.Tensor] = []

    def note(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.slot.stage == "learn" and event.slot.closes:
            before.append(started[0].eval()(images).detach())

    started: list[Graph] = []
    result = run(
        config=config,
        callbacks=[lambda e: started.append(e.graph) if isinstance(e, RunStarted) else None, note],
    )
    assert result.phases[0].splits > 0
    torch.testing.assert_close(result.graph.eval()(images), before[0], rtol=1e-4, atol=1e-5)


def test_events_come_in_order() -> None:
    events: list[Event] = []
    run(config=CONFIG.model_copy(update={"phases": 1}), callbacks=[events.append])
    kinds = [type(e).__name__ for e in events if not isinstance(e, StepsDone)]
    epoch = ["EpochStarted", "EpochEnded"]
    assert kinds == [
        "RunStarted",
        "PhaseStarted",
        *epoch * 4,
        "GraphRewritten",
        "PhaseEnded",
        "PhaseStarted",
        "Reinitialised",
        *epoch * 2,
        "PhaseEnded",
        "RunEnded",
    ]
    assert isinstance(events[-1], RunEnded)


class SamplesInside(nn.Module):
    """Samples as an inner dimension: a linear layer mixes channels there, and the learner cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples = x.size(0)
        x = self.conv(x).relu().permute(2, 3, 0, 1).reshape(-1, 4)
        return self.head(self.inner(x).relu().view(36, samples, 4).mean(0))


def test_what_the_learner_cannot_follow_is_remarked(tmp_path: Path) -> None:
    graph = trace(SamplesInside(), torch.zeros(2, 1, 8, 8))
    config = CONFIG.model_copy(update={"phases": 1, "train_epochs": 1, "learn_epochs": 1, "final": "none"})
    run(graph=graph, out=tmp_path / "run", config=config, quiet=True)
    remarks = json.loads((tmp_path / "run" / "remarks" / "phase-01.json").read_text())
    (refused,) = (remark for remark in remarks if remark["kind"] == "refused")
    assert (refused["code"], refused["space"], refused["node"]) == ("scattered-samples", "conv", "conv")
    assert refused["source"].startswith("test_growth.py:") and refused["suggestion"]
