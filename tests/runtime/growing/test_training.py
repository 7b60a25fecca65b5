"""The parts of a growth run on their own, from the loss meter to the width picture."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.events import EpochStarted, PhaseEnded, PhaseRecord, RunStarted, Warned
from morphir.runtime.growing.line_search import Trial, best, scaled, search
from morphir.runtime.growing.progress import ProgressReporter, phase_line
from morphir.runtime.growing.recalibration import recalibrate
from morphir.runtime.growing.reinitialise import reinitialise
from morphir.runtime.growing.schedule import plan
from morphir.runtime.growing.training import (
    LossMeter,
    NonFiniteLossError,
    Placement,
    call,
    evaluate,
    train_epoch,
)
from morphir.runtime.storage.widths import plot_widths

CPU = Placement(torch.device("cpu"))


def network() -> Graph:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, 3),
    )
    return trace(model, torch.zeros(2, 1, 4, 4))


def batches(count: int = 3, size: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(size + i, 1, 4, 4) * 2 + 1, torch.randint(3, (size + i,))) for i in range(count)]


def test_meter_is_the_mean_over_samples_and_reads_at_intervals() -> None:
    reads: list[tuple[int, float]] = []
    meter = LossMeter("epoch 1", 2, lambda steps, loss: reads.append((steps, loss)))
    for value, size in ((1.0, 4), (2.0, 4), (6.0, 2)):
        meter.add(torch.tensor(value), size)
    assert reads == [(2, 2.0)]
    assert meter.mean() == pytest.approx((4 + 8 + 12) / 10)
    assert reads == [(2, 2.0), (3, 6.0)]
    assert meter.mean() == pytest.approx(2.4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_meter_names_the_first_bad_step(value: float) -> None:
    meter = LossMeter("epoch 3", 4)
    for _ in range(4):
        meter.add(torch.tensor(0.5), 1)
    with pytest.raises(NonFiniteLossError, match="at step 6 of epoch 3"):
        for step in range(5, 9):
            meter.add(torch.tensor(value if step in (6, 8) else 0.5), 1)


def test_evaluation_against_plain_arithmetic() -> None:
    graph, data = network().train(), batches()
    found = evaluate(graph, data, functional.cross_entropy, CPU)
    assert graph.training
    graph.eval()
    inputs, targets = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    outputs = graph(inputs)
    assert found.samples == 27
    assert found.loss == pytest.approx(functional.cross_entropy(outputs, targets).item(), rel=1e-5)
    assert found.error == (outputs.argmax(1) != targets).sum().item() / 27
    regression = evaluate(graph, [(x, graph(x).detach()) for x, _ in data], functional.mse_loss, CPU)
    assert (regression.error, regression.loss) == (None, 0.0)


def test_training_follows_torch() -> None:
    """One epoch against the loop that everyone writes."""
    ours, theirs = network(), network()
    theirs.load_state_dict(ours.state_dict())
    for graph in (ours, theirs):
        graph.get_submodule("4").p = 0.0
    data = batches()
    first, second = (torch.optim.SGD(g.parameters(), lr=0.1, momentum=0.9) for g in (ours, theirs))
    train_epoch(ours, data, functional.cross_entropy, first, CPU, LossMeter("epoch 1", 10))
    for inputs, targets in data:
        second.zero_grad()
        functional.cross_entropy(theirs.train()(inputs), targets).backward()
        second.step()
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[key]), key


def test_bfloat16_and_channels_last_train() -> None:
    graph = network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1)
    meter = LossMeter("epoch 1", 10)
    placement = Placement(torch.device("cpu"), amp=True, channels_last=True)
    assert placement.move({"x": torch.zeros(2, 3, 4, 4)})["x"].is_contiguous(
        memory_format=torch.channels_last
    )
    train_epoch(graph, batches(), functional.cross_entropy, optimizer, placement, meter)
    assert math.isfinite(meter.mean())
    assert all(p.dtype == torch.float32 for p in graph.parameters())


def test_call_takes_tensors_tuples_and_mappings() -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x - y

    one, two = torch.ones(2), torch.full((2,), 2.0)
    for inputs in ((one, two), [one, two], {"y": two, "x": one}):
        assert torch.equal(call(Sum(), inputs), -one)


def test_a_batch_norm_that_cannot_train_says_why() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    graph = trace(model, torch.zeros(2, 1, 2, 2))
    batches = [(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))]
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1)
    with pytest.raises(
        MorphirError, match=r"cannot train on batch 1 of epoch 1 \(1 in it\): .*\n.*hint: make the batches"
    ):
        train_epoch(graph, batches, functional.cross_entropy, optimizer, CPU, LossMeter("epoch 1", 1))
    with pytest.raises(MorphirError, match=r"batch norm cannot train on .*\(1 in it\)"):
        recalibrate(graph, batches, CPU, 1)


def test_recalibration_is_the_mean_over_batches() -> None:
    graph, data = network().train(), batches()
    state = {key: value.clone() for key, value in graph.state_dict().items()}
    graph.get_buffer("1.running_mean").fill_(9.0)
    recalibrate(graph, data, CPU, 2)
    conv = graph.get_submodule("0")
    outputs = [conv(inputs).movedim(1, 0).flatten(1) for inputs, _ in data[:2]]
    mean = torch.stack([y.mean(1) for y in outputs]).mean(0)
    variance = torch.stack([y.var(1) for y in outputs]).mean(0)
    torch.testing.assert_close(graph.get_buffer("1.running_mean"), mean)
    torch.testing.assert_close(graph.get_buffer("1.running_var"), variance)
    for key, value in graph.state_dict().items():
        assert "running" in key or torch.equal(value, state[key])
    assert all(module.training for module in graph.modules())
    assert graph.get_submodule("1").momentum == 0.1
    recalibrate(graph, data, CPU, 0)
    torch.testing.assert_close(graph.get_buffer("1.running_mean"), mean)


def test_new_weights_depend_on_the_seed_alone() -> None:
    one, two = network(), network()
    state = torch.get_rng_state()
    assert reinitialise(one, 3) == ()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    two.get_buffer("1.running_mean").fill_(4.0)
    reinitialise(two, 3)
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[key]), key
    reinitialise(two, 4)
    assert not torch.equal(one.get_parameter("0.weight"), two.get_parameter("0.weight"))


def test_bare_parameters_keep_their_values_with_a_remark() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((3,), 2.0))
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x * self.scale)

    graph = trace(Scaled(), torch.zeros(2, 3))
    (remark,) = reinitialise(graph, 0)
    assert (remark.code, remark.message.split()[0]) == ("not-reinitialised", "scale")
    assert torch.equal(graph.get_parameter("scale"), torch.full((3,), 2.0))


def test_line_search_scales_thetas_and_leaves_the_graph() -> None:
    graph = network().eval()
    inputs = torch.randn(4, 1, 4, 4)
    theta = torch.randn(1, 3, 3)
    morphisms = (Split("0", 1, {"0.weight": theta}), Prune("0", 2), Split("0", 3))
    halved = scaled(morphisms, 0.5)
    assert isinstance(halved[0], Split)
    assert halved[0].theta is not None
    assert torch.equal(halved[0].theta["0.weight"], theta * 0.5)
    assert halved[1:] == morphisms[1:]
    before = graph(inputs)
    seen: list[torch.Tensor] = []

    def loss_of(candidate: Graph) -> float:
        seen.append(candidate.get_parameter("0.weight")[1] - graph.get_parameter("0.weight")[1])
        return abs(len(seen) - 2.0)

    trials = search(graph, morphisms, (1.0, 0.5, 0.0), loss_of)
    for difference, factor in zip(seen, (1.0, 0.5, 0.0), strict=True):
        torch.testing.assert_close(difference, theta * factor)
    assert [trial.factor for trial in trials] == [1.0, 0.5, 0.0]
    assert best(trials).factor == 0.5
    assert torch.equal(graph(inputs), before)
    assert not graph.history


def test_line_search_never_prefers_nan() -> None:
    assert best([Trial(1.0, math.nan), Trial(0.5, 3.0), Trial(0.25, 3.0)]).factor == 0.5
    assert best([Trial(1.0, math.nan)]).factor == 1.0
    assert best([Trial(1.0, 2.0, 9, 0.9), Trial(0.5, 2.5, 3, 0.3)]).splits == 3


def test_width_picture_is_an_svg_with_a_panel_per_phase() -> None:
    widths = [{"a": 4 + phase, "b": 8 - phase} for phase in range(3)]
    labels = ["seed", "after phase 1", "after phase 2"]
    picture = plot_widths(widths, labels)
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    text = picture.decode()
    assert all(f"<!-- {label}: 12 groups -->" in text for label in labels)
    assert plot_widths(widths, labels) == picture
    many = plot_widths([{"a": 4}] * 31, [f"p{i}" for i in range(31)]).decode()
    assert "<!-- p0: 4 groups -->" in many
    assert "<!-- p30: 4 groups -->" in many
    assert many.count(": 4 groups -->") == 12


RECORD = PhaseRecord(2, "grow", 12345, 678901, 0.51234, 0.0825, 7, 3, 0.5, 12.34, {"a": 4}, 1, 1, {"a": 5})


def test_phase_line() -> None:
    assert phase_line(RECORD).split() == ["2", "12,345", "678,901", "0.5123", "8.25%", "7", "3", "12.3"]
    final = replace(RECORD, stage="final", test_error=None, train_loss=None)
    assert phase_line(final).split()[:5] == ["final", "12,345", "678,901", "-", "-"]


@pytest.mark.parametrize(("quiet", "lines"), [(False, 3), (True, 1)])
def test_plain_lines_where_there_is_no_terminal(
    quiet: bool, lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    graph, slots = network(), plan(GrowthConfig(phases=1))
    with ProgressReporter(quiet=quiet) as progress:
        progress(RunStarted(graph, GrowthConfig(phases=1), slots, 0))
        progress(EpochStarted(slots[0], 3))
        progress(Warned("a checkpoint is damaged"))
        progress(PhaseEnded(graph, RECORD))
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == lines
    assert "warning: a checkpoint is damaged" in printed
