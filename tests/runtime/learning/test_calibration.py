"""Calibration against networks that are really rewritten for each sample, and its formula in NumPy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from morphir.analysis.tracing import trace
from morphir.errors import MorphirError, MorphirWarning
from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.runtime.learning.calibration import Calibration, CalibrationError, Drawn
from morphir.runtime.learning.curvature import CURVATURES, BatchLosses
from morphir.runtime.learning.learner import Learner
from morphir.runtime.learning.projection import Projection
from morphir.runtime.oracle.subjects import randomise_norms
from passes.transform import transform

CLASSES = 4
LOSS = partial(functional.cross_entropy, reduction="none")
Batch = tuple[torch.Tensor, torch.Tensor]


class Chain(nn.Module):
    """A ReLU alone, an activation with pooling, channels that are flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 5, 3), nn.SiLU(), nn.MaxPool2d(2, 1), nn.Dropout(0.5))
        self.head = nn.Linear(5 * 9, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)).flatten(1))


class Residual(nn.Module):
    """A stream with two producers, which is read twice and passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.outer = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.stem(x))
        x = functional.relu(x + self.outer(torch.sigmoid(self.norm(self.inner(x)))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Channels of several spaces in one tensor, each read in part; a depthwise convolution, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 3, padding=1)
        self.two = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7)
        self.down, self.up = nn.Conv2d(7, 2, 1), nn.Conv2d(2, 7, 1)
        self.head = nn.Conv2d(7, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.one(x)
        x = torch.relu(self.norm(torch.cat([self.two(torch.tanh(one)), one], 1)))
        x = functional.silu(self.depthwise(x))
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(x * gate).mean((2, 3))


class SequenceFirst(nn.Module):
    """The samples along the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(x.flatten(2).transpose(0, 1)))).mean(0)


def _images(samples: int) -> torch.Tensor:
    return torch.randn(samples, 3, 6, 6, dtype=torch.float64)


def _sequences(samples: int) -> torch.Tensor:
    return torch.randn(samples, 3, 5, 1, dtype=torch.float64)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], torch.Tensor]]] = {
    "chain": (Chain, _images),
    "residual": (Residual, _images),
    "dense": (Dense, _images),
    "sequence-first": (SequenceFirst, _sequences),
}


def _network(name: str = "chain") -> Graph:
    make, inputs = NETWORKS[name]
    graph = trace(make().double().eval(), inputs(2))
    randomise_norms(graph, 0)
    return graph


def _batch(name: str = "chain", samples: int = 48) -> Batch:
    return NETWORKS[name][1](samples), torch.randint(0, CLASSES, (samples,))


@dataclass(frozen=True)
class Seen:
    """What a calibration gathered of one batch, by sample."""

    columns: Sequence[int]
    changes: torch.Tensor
    q: torch.Tensor
    sampled: torch.Tensor | None


def _calibrated(learner: Learner, batch: Batch) -> Seen:
    found: list[Seen] = []
    add = learner._calibration.add

    def noting(drawn: Any, changes: Any, projections: Any, losses: Any, curvature: Any) -> None:
        q = torch.stack([own.q for own in projections]).sum(0)
        tilde = [own.sampled for own in projections if own.sampled is not None]
        sampled = torch.stack(tilde).sum(0) if tilde else None
        found.append(Seen(drawn.columns.tolist(), changes, q, sampled))
        add(drawn, changes, projections, losses, curvature)

    learner._calibration.add = noting  # pyright: ignore[reportAttributeAccessIssue]
    learner.calibrate(*batch)
    learner._calibration.add = add
    return found[0]


def _morphisms(learner: Learner) -> list[Morphism | None]:
    """The morphism of every column; None where it is not legal."""
    legal = {(s.morphism.kind, s.morphism.space, s.morphism.index): s.morphism for s in learner.scores()}
    return [
        legal.get((kind, program.name, group))
        for program in learner.lowered.spaces
        for kind in ("prune", "split")[: 1 + (program.split is not None)]
        for group in range(program.width)
    ]


def _losses(network: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return LOSS(network.eval()(batch[0]), batch[1])


@pytest.mark.parametrize("name", list(NETWORKS))
def test_each_sample_has_the_loss_of_a_network_that_is_rewritten_for_it(name: str) -> None:
    graph, batch = _network(name), _batch(name)
    state = {key: value.clone() for key, value in graph.state_dict().items()}
    learner = Learner(graph, LOSS, init_scale=0.7)
    learner.step(*batch)
    seen, morphisms = _calibrated(learner, batch), _morphisms(learner)
    before, expected = _losses(graph, batch), torch.zeros(len(batch[1]), dtype=torch.float64)
    for column in set(seen.columns):
        morphism = morphisms[column]
        assert morphism is not None
        changed = copy.deepcopy(graph)
        transform(changed, [morphism])
        own = torch.tensor([drawn == column for drawn in seen.columns])
        expected[own] = (_losses(changed, batch) - before)[own]
    torch.testing.assert_close(seen.changes, expected, rtol=1e-8, atol=1e-12)
    # Both kinds, and several spaces, were applied, and changed something.
    applied = [morphisms[column] for column in seen.columns]
    assert {m.kind for m in applied if m is not None} == {"prune", "split"}
    assert {m.space for m in applied if m is not None} == {p.name for p in learner.lowered.spaces}
    assert int((expected.abs() > 1e-4).sum()) > len(expected) // 2
    assert all(torch.equal(value, state[key]) for key, value in graph.state_dict().items())


def test_q_of_a_split_is_its_true_change_to_first_order() -> None:
    """What is left is of the fourth order in theta: u is even in it, and the rest is quadratic in u."""
    graph, batch = _network("sequence-first"), _batch("sequence-first")
    errors: list[float] = []
    for scale in (0.1, 0.01):
        learner = Learner(graph, LOSS, init_scale=scale, lr=1e-12)
        learner.step(*batch)
        seen, morphisms = _calibrated(learner, batch), _morphisms(learner)
        splits = [i for i, column in enumerate(seen.columns) if _kind(morphisms[column]) == "split"]
        errors.append(float((seen.changes - seen.q)[splits].abs().max()))
    assert 0 < errors[1] < 2e-4 * errors[0]


def _kind(morphism: Morphism | None) -> str:
    assert morphism is not None
    return str(getattr(morphism, "kind"))  # noqa: B009


def test_q_of_a_prune_is_minus_the_consumers_weight_times_its_gradient() -> None:
    graph, batch = _network(), _batch()
    learner = Learner(graph, LOSS)
    learner.step(*batch)
    seen, morphisms = _calibrated(learner, batch), _morphisms(learner)
    consumers = {"first.0": ("second.0.weight", 1), "second.0": ("head.weight", 9)}
    checked = 0
    for sample, column in enumerate(seen.columns):
        morphism = morphisms[column]
        if morphism is None or _kind(morphism) != "prune":
            continue
        key, each = consumers[morphism.space]
        kernel = graph.get_parameter(key)
        loss = LOSS(graph.eval()(batch[0][sample : sample + 1]), batch[1][sample : sample + 1])
        (gradient,) = torch.autograd.grad(loss, kernel)
        columns = slice(morphism.index * each, (morphism.index + 1) * each)
        expected = -float((kernel * gradient)[:, columns].detach().sum())
        assert float(seen.q[sample]) == pytest.approx(expected, rel=1e-9, abs=1e-13)
        checked += 1
    assert checked > 10


def test_the_sampled_q_is_the_same_projection_of_the_other_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def thrice(outputs: Any, targets: Any, loss: torch.Tensor, whole: Any, generator: Any) -> torch.Tensor:
        return 3 * torch.autograd.grad(loss, outputs, whole, retain_graph=True)[0]

    monkeypatch.setattr("morphir.runtime.learning.model_pass.sampled_logit_gradient", thrice)
    for name in NETWORKS:
        seen = _calibrated(Learner(_network(name), LOSS, score_curvature="fisher"), _batch(name))
        assert seen.sampled is not None
        assert float(seen.q.abs().max()) > 1e-4
        torch.testing.assert_close(seen.sampled, 3 * seen.q, rtol=1e-9, atol=1e-14)


def _rows(learner: Learner) -> list[int]:
    """For every column a number for its space and kind."""
    return [
        2 * number + kind
        for number, program in enumerate(learner.lowered.spaces)
        for kind in range(1 + (program.split is not None))
        for _ in range(program.width)
    ]


@pytest.mark.parametrize("curvature", ["fisher", "shrunk-fisher", "mixed", "batch"])
def test_factors_are_the_regressions_weighed_by_their_standard_errors(curvature: str) -> None:
    graph, batches = _network(), [_batch(samples=900) for _ in range(3)]

    def learner(score: str) -> Learner:
        made = Learner(graph, LOSS, score_curvature=score, learn_curvature="fisher", lr=0.0, init_scale=0.7)
        made.step(*batches[0])
        return made

    plain, none = (learner(score).scores() for score in (curvature, "none"))
    calibrated = learner(curvature)
    seen = [_calibrated(calibrated, batch) for batch in batches]
    rows, morphisms = np.array(_rows(calibrated)), _morphisms(calibrated)
    above = {program.name: program.layers_above for program in calibrated.lowered.spaces}
    columns = np.array([column for one in seen for column in one.columns])
    x = np.concatenate([(one.changes - one.q).numpy() for one in seen])
    q = np.concatenate([one.q.numpy() for one in seen])
    mean = np.concatenate([np.full(900, float(_losses(graph, batch).mean())) for batch in batches])
    drawn = [one.sampled for one in seen]
    tilde = np.concatenate([np.zeros(900) if one is None else one.numpy() for one in drawn])
    shrunk = np.array([1 + above[m.space] / 50 if m is not None else 1 for m in morphisms])[columns]
    d = {
        "fisher": tilde**2 / 2,
        "shrunk-fisher": tilde**2 / 2 / shrunk,
        "mixed": tilde**2 / 3 + q**2 / (12 * mean),
        "batch": q**2 / (4 * mean),
    }[curvature]
    error, expected = CURVATURES[curvature].error, {}
    for row in set(rows):
        own = rows[columns] == row
        assert d[own].sum() ** 2 / (d[own] ** 2).sum() >= 30
        f = x[own].sum() / d[own].sum()
        variance = ((x[own] - d[own]) ** 2).sum() / d[own].sum() ** 2
        expected[row] = max((f / variance + 1 / error**2) / (1 / variance + 1 / error**2), 0)
    assert max(abs(f - 1) for f in expected.values()) > 0.01
    of = {_site(m): expected[row] for m, row in zip(morphisms, rows, strict=True) if m is not None}
    for before, first, after in zip(plain, none, calibrated.scores(), strict=True):
        wanted = first.delta_loss + of[_site(after.morphism)] * (before.delta_loss - first.delta_loss)
        assert after.delta_loss == pytest.approx(wanted, rel=1e-7, abs=1e-12)


def _site(morphism: Morphism) -> tuple[str, str, int]:
    return _kind(morphism), morphism.space, morphism.index


def test_measured_factors_are_those_of_brute_force() -> None:
    """Over all morphisms and samples the factor is one number; what is drawn comes to it."""
    graph, batch = _network(), _batch(samples=192)

    def learner(score: str) -> Learner:
        made = Learner(graph, LOSS, learn_curvature="batch", score_curvature=score, lr=1e-12, init_scale=1.0)
        made.step(*batch)
        return made

    drawing, none = learner("batch"), learner("none")
    sums: dict[tuple[str, str], list[float]] = {}
    for whole, first in zip(drawing.scores(), none.scores(), strict=True):
        changed = copy.deepcopy(graph)
        transform(changed, [whole.morphism])
        truth = float((_losses(changed, batch) - _losses(graph, batch)).mean())
        own = sums.setdefault((whole.morphism.space, _kind(whole.morphism)), [0.0, 0.0])
        own[:] = [own[0] + truth - first.delta_loss, own[1] + whole.delta_loss - first.delta_loss]
    exact = np.array([sums[row][0] / sums[row][1] for row in sorted(sums)])
    for _ in range(100):
        drawing.calibrate(*batch)
    gathered = drawing.state_dict()["calibration"]
    assert isinstance(gathered, torch.Tensor)
    count, x, d, xx, xd, dd = gathered.numpy().T
    measured = x / d
    error = np.sqrt(xx - 2 * measured * xd + measured**2 * dd) / d
    assert (count > 4000).all()
    assert (np.abs(measured - exact) < 3 * error).all(), (measured, exact, error)
    # It is a measurement: the factors are no ones, and known well enough to tell.
    assert (np.abs(exact - 1) > 4 * error).sum() >= 3


def test_few_samples_change_nothing() -> None:
    learner, batch = Learner(_network(), LOSS), _batch(samples=20)
    learner.step(*batch)
    before = [score.delta_loss for score in learner.scores()]
    learner.calibrate(*batch)
    assert [score.delta_loss for score in learner.scores()] == before


def test_a_calibration_continues_from_its_state() -> None:
    graph, batches = _network(), [_batch(samples=1500) for _ in range(2)]

    def learner() -> Learner:
        return Learner(graph, LOSS, seed=3)

    whole, first, second = learner(), learner(), learner()
    for one in (whole, first):
        one.step(*batches[0])
        one.calibrate(*batches[0])
    second.load_state_dict(first.state_dict())
    for one in (whole, second):
        one.calibrate(*batches[1])
    assert second.scores() == whole.scores()
    assert second.scores() != first.scores()


def test_a_sample_that_makes_up_the_sums_tells_nothing() -> None:
    """Its residual at the fitted factor is 0, whatever the factor is."""
    network = _network()
    program = Learner(network, LOSS).lowered.spaces[0]
    calibration = Calibration([program], network)
    columns = torch.zeros(400, dtype=torch.int64)
    losses = BatchLosses(torch.tensor(1.0), torch.ones(400))
    sampled = torch.full((400,), 1e-3)
    sampled[7] = 1.0

    def add() -> None:
        drawn, term = Drawn(columns, {program.name: 0}), CURVATURES["fisher"]
        changes = 5 * sampled.square() / 2
        calibration.add(drawn, changes, [Projection(torch.zeros(400), sampled)], losses, term)

    add()
    assert torch.equal(calibration.factors(), torch.ones(program.morphisms, dtype=torch.float64))
    # As many alike do tell: the factor is near 5, and short of it.
    sampled[:] = 1.0
    add()
    assert 2 < float(calibration.factors()[0]) < 5


def test_splits_that_change_nothing_are_not_drawn() -> None:
    learner, batch = Learner(_network(), LOSS, init_scale=0.5, lr=1e-12), _batch(samples=400)
    learner.step(*batch)
    with torch.no_grad():
        for theta in (theta for own in learner.thetas.values() for theta in own.values()):
            theta.value[1:] = 0.0
    morphisms = _morphisms(learner)
    drawn = [morphisms[column] for column in _calibrated(learner, batch).columns]
    splits = {m.index for m in drawn if m is not None and _kind(m) == "split"}
    assert splits == {0}


class Functional(nn.Module):
    """Parameters whose first extents say nothing of samples, and an input that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(5, 4) * 0.5)
        self.place = nn.Parameter(torch.randn(1, 3, 5) * 0.5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.head((torch.tanh(functional.linear(x, self.first) + self.place) * scale).mean(1))


def test_parameters_are_no_samples() -> None:
    inputs = torch.randn(48, 3, 4, dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (48,))
    graph = trace(Functional().double().eval(), (inputs[0][:2], inputs[1]))
    learner = Learner(graph, LOSS, init_scale=0.7)
    learner.step(inputs, labels)
    seen, morphisms = _calibrated(learner, (inputs, labels)), _morphisms(learner)  # pyright: ignore[reportArgumentType]
    for sample, column in enumerate(seen.columns):
        changed, morphism = copy.deepcopy(graph), morphisms[column]
        assert morphism is not None
        transform(changed, [morphism])
        with torch.no_grad():
            after, before = (LOSS(network(*inputs), labels)[sample] for network in (changed, graph))
        assert float(seen.changes[sample]) == pytest.approx(float(after - before), rel=1e-8, abs=1e-12)


class BatchStatistics(nn.Module):
    """A norm without running statistics mixes the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.body(x))).mean((2, 3)))


def test_what_cannot_be_measured_is_refused() -> None:
    batch = _batch()
    mixed = Learner(trace(BatchStatistics().double().eval(), _images(2)), LOSS)
    with pytest.raises(CalibrationError, match="samples that do not depend on each other"):
        mixed.calibrate(*batch)
    with pytest.raises(CalibrationError, match='reduction="none"'):
        Learner(_network(), functional.cross_entropy).calibrate(*batch)
    with pytest.raises(CalibrationError, match="no second-order term"):
        Learner(_network(), LOSS, score_curvature="none").calibrate(*batch)
    learner = Learner(_network(), LOSS)
    learner.step(*batch)
    learner.calibrate(batch[0] * torch.inf, batch[1])
    with pytest.raises(MorphirError, match="the loss of a calibration was not finite"):
        learner.scores()


def test_under_autocast_all_is_computed_in_single_precision() -> None:
    """Rounded to eight bits, little would be left of a split's change."""
    graph, batch = _network().float(), _batch()
    images = batch[0].float()
    learners = [Learner(graph, LOSS, init_scale=0.7) for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = _calibrated(learners[0], (images, batch[1]))
    single = _calibrated(learners[1], (images, batch[1]))
    assert torch.equal(half.changes, single.changes)
    assert torch.equal(half.q, single.q)
    assert float(single.changes.abs().max()) > 1e-3


class HalfInside(nn.Module):
    """Runs under autocast alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x)).bfloat16())


def test_what_runs_under_autocast_alone_is_said() -> None:
    inputs, labels = torch.randn(8, 4), torch.randint(0, CLASSES, (8,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learner = Learner(trace(HalfInside().eval(), inputs[:2]), LOSS)
        learner.step(inputs, labels)
        with pytest.raises(CalibrationError, match="runs without autocast, and the model fails on"):
            learner.calibrate(inputs, labels)
    half = Learner(trace(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)), inputs[:2]), LOSS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half.step(inputs.bfloat16(), labels)
        half.calibrate(inputs.bfloat16(), labels)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).bfloat16()
    with pytest.warns(MorphirWarning, match="of half precision"):
        all_half = Learner(trace(network, inputs[:2].bfloat16()), LOSS)
    all_half.step(inputs.bfloat16(), labels)
    all_half.calibrate(inputs.bfloat16(), labels)


def test_a_calibration_does_not_wait_for_the_device(no_host_reads: AbstractContextManager[Any]) -> None:
    learner, batch = Learner(_network("dense"), LOSS), _batch("dense")
    learner.step(*batch)
    learner.calibrate(*batch)
    before = learner.state_dict()["calibration"]
    with no_host_reads:
        learner.calibrate(*batch)
    after = learner.state_dict()["calibration"]
    assert isinstance(before, torch.Tensor)
    assert isinstance(after, torch.Tensor)
    torch.testing.assert_close(after[:, 0].sum(), 2 * before[:, 0].sum())


@pytest.mark.parametrize("name", ["chain", "residual", "dense"])
def test_all_is_on_the_graphs_device(name: str) -> None:
    """The meta device stands for any but the CPU: it refuses mixed devices."""
    make, inputs = NETWORKS[name]
    learner = Learner(trace(make().eval().to("meta"), inputs(2).float().to("meta")), LOSS)
    batch = inputs(6).float().to("meta"), torch.zeros(6, dtype=torch.int64, device="meta")
    learner.step(*batch)
    learner.calibrate(*batch)
    gathered = learner.state_dict()["calibration"]
    assert isinstance(gathered, torch.Tensor)
    assert gathered.device.type == "meta"
