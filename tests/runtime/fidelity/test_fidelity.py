"""The fidelity study against networks that are widened by hand, and against finite differences."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.ir.graph import Graph
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.fidelity.agreement import Agreement
from morphir.runtime.fidelity.estimates import estimated_changes
from morphir.runtime.fidelity.learners import (
    ExpandedNetwork,
    GaussNewton,
    PaperLearner,
    Place,
    Problem,
    RandomDirections,
    SteepestDescent,
)
from morphir.runtime.fidelity.plots import plot_estimates
from morphir.runtime.fidelity.study import Study, by_space
from morphir.runtime.fidelity.together import together
from morphir.runtime.fidelity.truth import true_changes
from morphir.runtime.growing import learning
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.run_state import Job, learner_of_phase
from morphir.runtime.growing.schedule import plan
from morphir.runtime.growing.training import NonFiniteLossError, Placement
from morphir.runtime.learning.learner import Learner, StepResult
from passes.transform import transform

LOSS = partial(F.cross_entropy, reduction="none")
CPU = Placement(torch.device("cpu"))
Batch = tuple[Tensor, Tensor]


def mlp(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 2)).double()


@pytest.fixture
def network() -> Graph:
    torch.manual_seed(0)
    return trace(mlp(4).eval(), torch.randn(2, 3, dtype=torch.float64))


@pytest.fixture
def data() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    labels = (inputs[:, 0] * inputs[:, 1] > 0).long()
    # Batches of other sizes: each has to count by its samples.
    return [(inputs[:25], labels[:25]), (inputs[25:], labels[25:])]


def problem(network: Graph, data: list[Batch], places: tuple[Place, ...], **options: object) -> Problem:
    return Problem(network, places, lambda epoch: data, LOSS, CPU, **options)  # pyright: ignore[reportArgumentType]


def loss_of(model: nn.Module, data: list[Batch]) -> float:
    inputs, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    return float(F.cross_entropy(model(inputs), labels).detach())


def widened(network: Graph, group: int, theta: Tensor) -> nn.Sequential:
    """Splits one hidden unit by hand."""
    found = mlp(5)
    state = {key: value.detach() for key, value in network.state_dict().items()}
    order = [*range(group), group, group, *range(group + 1, 4)]
    rows, columns = state["0.weight"][order].clone(), state["2.weight"][:, order].clone()
    rows[group] += theta
    rows[group + 1] -= theta
    columns[:, group : group + 2] /= 2
    found.load_state_dict(
        {"0.weight": rows, "0.bias": state["0.bias"][order], "2.weight": columns, "2.bias": state["2.bias"]}
    )
    return found


def test_the_truth_is_that_of_a_network_widened_by_hand(network: Graph, data: list[Batch]) -> None:
    thetas = [torch.randn(3, dtype=torch.float64) * 0.3 for _ in range(2)]
    splits = [Split("0", group, {"0.weight": theta}) for group, theta in zip((1, 3), thetas, strict=True)]
    before = copy.deepcopy(network.state_dict())
    found = list(true_changes(network, [*splits, Prune("0", 2)], data, LOSS, CPU))
    for group, theta, change in zip((1, 3), thetas, found, strict=False):
        wanted = loss_of(widened(network, group, theta), data) - loss_of(network, data)
        assert change == pytest.approx(wanted, rel=1e-9)
    silenced = copy.deepcopy(network)
    with torch.no_grad():
        silenced.get_parameter("2.weight")[:, 2] = 0
    assert found[2] == pytest.approx(loss_of(silenced, data) - loss_of(network, data), rel=1e-9)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())


def test_estimates_are_means_over_samples_and_right_in_the_limit(network: Graph, data: list[Batch]) -> None:
    """Without curvature the estimate is q: what the true change is for a small theta, up to its square."""
    theta = torch.randn(3, dtype=torch.float64) * 1e-3
    splits = {("0", 1): Split("0", 1, {"0.weight": theta})}
    found = estimated_changes(network, splits, data, LOSS, "none", CPU, GrowthConfig())
    (truth,) = true_changes(network, list(splits.values()), data, LOSS, CPU)
    assert found["split", "0", 1] == pytest.approx(truth, rel=1e-3)
    assert found["split", "0", 0] == 0.0
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    again = estimated_changes(network, splits, whole, LOSS, "none", CPU, GrowthConfig())
    assert found["split", "0", 1] == pytest.approx(again["split", "0", 1], rel=1e-9)


def test_a_calibrated_score_is_measured_on_the_same_data(network: Graph, data: list[Batch]) -> None:
    data = [(inputs.repeat(8, 1), labels.repeat(8)) for inputs, labels in data]
    theta = torch.randn(3, dtype=torch.float64)
    splits = {("0", 1): Split("0", 1, {"0.weight": theta})}
    case = (network, splits, data, LOSS)
    found = estimated_changes(*case, "calibrated-batch", CPU, GrowthConfig(), calibrations=3)
    learner = Learner(network, LOSS, score_curvature="batch", lr=0.0)
    learned = learner.thetas["0"]["0.weight"]
    with torch.no_grad():
        learned.value.zero_()
        learned.value[1] = theta
    learner.ema = 1.0
    learner.step(*data[0])
    learner.ema = len(data[1][1]) / (len(data[0][1]) + len(data[1][1]))
    learner.step(*data[1])
    for batch in data * 3:
        learner.calibrate(*batch)
    expected = {
        (s.morphism.kind, s.morphism.index): s.delta_loss  # pyright: ignore[reportAttributeAccessIssue]
        for s in learner.scores()
    }
    plain = estimated_changes(*case, "batch", CPU, GrowthConfig())
    for (kind, _, group), change in found.items():
        assert change == pytest.approx(expected[kind, group], rel=1e-9, abs=1e-15)
        assert (kind, group) == ("split", 1) or kind == "prune" or change == 0.0
    assert found["split", "0", 1] != pytest.approx(plain["split", "0", 1], rel=1e-3)
    with pytest.raises(
        MorphirError, match="(?s)there is no score 'calibrated-none'.*did you mean calibrated-"
    ):
        estimated_changes(*case, "calibrated-none", CPU, GrowthConfig())


def test_steepest_descent_finds_the_least_eigenvector(network: Graph, data: list[Batch]) -> None:
    """The loss's second derivative by theta at 0, by automatic differentiation of the widened network."""
    inputs, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    state = {key: value.detach() for key, value in network.state_dict().items()}

    def loss(theta: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(inputs, state["0.weight"], state["0.bias"]))
        y = inputs @ state["0.weight"][1] + state["0.bias"][1]
        delta = inputs @ theta
        own = (torch.tanh(y + delta) + torch.tanh(y - delta)) / 2
        hidden = torch.cat([hidden[:, :1], own[:, None], hidden[:, 2:]], 1)
        return F.cross_entropy(F.linear(hidden, state["2.weight"], state["2.bias"]), labels)

    hessian = torch.autograd.functional.hessian(loss, torch.zeros(3, dtype=torch.float64))
    vectors = torch.linalg.eigh(hessian).eigenvectors
    found = SteepestDescent(samples=40).learn(problem(network, data, (("0", 1),), epochs=300))
    theta = (found["0", 1].theta or {})["0.weight"]
    assert abs(float(theta @ vectors[:, 0]) / float(theta.norm())) > 0.99


def test_learners_lower_the_true_loss_and_random_directions_have_their_norm(
    network: Graph, data: list[Batch]
) -> None:
    places: tuple[Place, ...] = (("0", 1), ("0", 3))
    case = problem(network, data, places, epochs=40)
    learned = {learner.name: learner.learn(case) for learner in (GaussNewton("batch"), ExpandedNetwork(80))}
    for splits in learned.values():
        assert list(splits) == list(places)
        assert sum(true_changes(network, list(splits.values()), data, LOSS, CPU)) < -1e-3
    random = RandomDirections(learned["batch"]).learn(case)
    for place in places:
        pair = [(splits[place].theta or {})["0.weight"] for splits in (random, learned["batch"])]
        assert float(pair[0].norm()) == pytest.approx(float(pair[1].norm()), rel=1e-9)
        assert not torch.equal(*pair)


def test_a_selection_at_once_is_that_of_the_rewritten_network(network: Graph, data: list[Batch]) -> None:
    config = GrowthConfig(theta_factors=(1.0, 0.5), best_fraction=0.5, prunes=False)
    trial, held_back = data[:1], data[1:]
    case = problem(network, data, (), epochs=20, config=config)
    found = {row.plan: row for row in together(case, trial, held_back)}
    learner = Learner(network, LOSS, ema=0.25)
    for epoch in range(20):
        for step, batch in enumerate(data):
            learner.lr = 0.2 * (1 + math.cos(math.pi * (epoch + step / 2) / 20)) / 2
            learner.step(*batch)
    scores = sorted(
        (s for s in learner.scores() if isinstance(s.morphism, Split)), key=lambda s: s.delta_loss
    )
    changed = copy.deepcopy(network)
    transform(changed, [score.morphism for score in scores[:2]])
    whole = found["all of it"]
    assert (whole.splits, whole.prunes, whole.factor) == (2, 0, 1.0)
    assert whole.predicted == pytest.approx(sum(score.delta_loss for score in scores[:2]))
    assert whole.joint == pytest.approx(loss_of(changed, trial) - loss_of(network, trial), abs=1e-6)
    assert whole.truth == pytest.approx(loss_of(changed, held_back) - loss_of(network, held_back), abs=1e-6)
    assert found["best factor"].joint <= whole.joint
    assert found["backtracked"].joint <= 0


def test_a_selection_at_once_leaves_out_what_growth_keeps(network: Graph, data: list[Batch]) -> None:
    """The network has no other space that can be split or pruned, so that nothing is left."""
    case = problem(network, data, (), config=GrowthConfig(keep=("0",)))
    rows = list(together(case, data[:1], data[1:]))
    assert [(row.splits, row.prunes, row.joint, row.truth) for row in rows] == [(0, 0, 0.0, 0.0)] * 3
    with pytest.raises(MorphirError, match="no channel space is called 'layer9'"):
        list(together(replace(case, config=GrowthConfig(keep=("layer9",))), data[:1], data[1:]))


def test_every_option_of_theta_reaches_the_learner(
    network: Graph, data: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the names of the configuration's options: one that is new, and named so, has to be added here."""
    given = {
        "theta_optimizer": "adam",
        "theta_lr": 0.03,
        "theta_lr_absolute": True,
        "theta_lr_schedule": "constant",
        "theta_scale": 0.2,
    }
    of_plans = {"theta_factors", "theta_halvings"}
    assert {name for name in GrowthConfig.model_fields if name.startswith("theta")} == {*given, *of_plans}
    config = GrowthConfig(**given, learn_curvature="batch", ema=0.3, compile=True, seed=5)
    expected = {
        "learn_curvature": "batch",
        "score_curvature": "auto",
        "optimizer": "adam",
        "lr": 0.03,
        "absolute_lr": True,
        "init_scale": 0.2,
        "ema": 0.3,
        "compile": True,
        "spaces": None,
        "seed": 5,
    }
    made: list[dict[str, object]] = []
    monkeypatch.setattr(learning, "Learner", lambda graph, loss, **options: made.append(options))
    case = problem(network, data, (), config=config)
    case.learner()
    job = Job(network, data, LOSS, config, CPU)
    learner_of_phase(job, plan(config)[0])
    replace(case, places=(("0", 1),)).learner(learn_curvature="sample")
    assert made == [
        expected,
        {**expected, "seed": 6},
        {**expected, "spaces": ["0"], "learn_curvature": "sample"},
    ]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", [0.2] * 4), ("cosine", [0.1 * (1 + math.cos(math.pi * done / 4)) for done in range(4)])],
)
def test_the_rate_falls_as_the_configuration_says(
    network: Graph, data: list[Batch], schedule: str, rates: list[float]
) -> None:
    class Noting:
        def step(self, inputs: Tensor, targets: Tensor) -> StepResult:
            seen.append(vars(self)["lr"])
            return StepResult(torch.tensor(1.0), inputs)

    seen: list[float] = []
    config = GrowthConfig(theta_lr=0.2, theta_lr_schedule=schedule)
    problem(network, data, (), config=config, epochs=2).teach(Noting())  # pyright: ignore[reportArgumentType]
    assert seen == pytest.approx(rates, rel=1e-12)


def test_a_loss_that_is_not_finite_ends_the_learning(network: Graph, data: list[Batch]) -> None:
    case = problem(network, [(inputs * math.inf, labels) for inputs, labels in data], ())
    with pytest.raises(NonFiniteLossError, match="at step 1 of epoch 1 of learning"):
        case.teach(case.learner())


def test_agreement_against_numpy() -> None:
    estimates, truth = [1.0, 2.0, -1.0, 0.5], [0.8, 2.5, -1.5, 1.0]
    found = Agreement.of(estimates, truth)
    assert found.relative_error == pytest.approx((0.2 + 0.5 + 0.5 + 0.5) / 5.8)
    slope, *_ = np.linalg.lstsq(np.array(truth)[:, None], np.array(estimates), rcond=None)
    assert found.slope == pytest.approx(float(slope[0]))
    assert found.rank == pytest.approx(float(stats.spearmanr(estimates, truth)[0]))
    assert Agreement.of([1.0, 2.0], [1.0, 2.0]).rank is None


def test_a_study_measures_every_learner_at_every_place(network: Graph, data: list[Batch]) -> None:
    lines: list[str] = []
    study = Study(["batch", "paper"], ["batch", "fisher"], baselines=True, per_space=2, expanded_steps=5)
    measured = list(study.run(problem(network, data, ()), data, progress=lines.append))
    names = [item.learner for item in measured]
    assert list(dict.fromkeys(names)) == ["prune", "batch", "paper", "steepest", "expanded", "random"]
    assert {item.site[2] for item in measured} == {0, 3}
    assert all(set(item.estimates) == {"batch", "fisher"} for item in measured)
    assert list(by_space(measured)) == ["0"]
    assert any("steepest: learned 2 splits" in line for line in lines)


def test_calibrated_scores_are_left_out_where_samples_depend_on_each_other(data: list[Batch]) -> None:
    """A norm by the batch's own statistics."""
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    model = nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 2)).double().eval()
    graph, lines = trace(model, torch.randn(5, 3, dtype=torch.float64)), list[str]()
    case, scores = problem(graph, data, ()), ["batch", "calibrated-batch"]
    measured = list(Study(["batch"], scores, per_space=1).run(case, data, progress=lines.append))
    assert measured and all(set(item.estimates) == {"batch"} for item in measured)
    assert lines[0].startswith("calibrated-batch: left out, a calibration needs samples")
    assert b"<svg" in plot_estimates(measured, "calibrated-batch")
    with pytest.raises(MorphirError, match="samples that do not depend"):
        list(Study(["batch"], scores[1:], per_space=1).run(case, data, progress=lines.append))


def test_the_papers_learner_takes_nothing_from_the_configuration(network: Graph, data: list[Batch]) -> None:
    """Adam at a constant rate of 0.01 on the paper's term; torch's own moves theta here."""
    config = GrowthConfig(theta_lr=0.7, seed=3)
    case = problem(network, data, (("0", 0), ("0", 2)), epochs=2, config=config)
    found = PaperLearner().learn(case)
    learner = Learner(network, LOSS, learn_curvature="batch", score_curvature="batch", lr=0.0, seed=3)
    theta = learner.thetas["0"]["0.weight"]
    value = theta.value.detach().clone().requires_grad_()
    adam = torch.optim.Adam([value], lr=0.01)
    with torch.no_grad():
        theta.value.copy_(value)
    gradients: list[Tensor] = []
    learner._optimizer.take = lambda thetas, found: gradients.append(found["0.weight"])  # type: ignore[method-assign]
    for batch in data * 2:
        learner.step(*batch)
        value.grad = gradients[-1].clone()
        adam.step()
        with torch.no_grad():
            theta.value.copy_(value)
    for group in (0, 2):
        assert found["0", group].theta is not None
        torch.testing.assert_close(found["0", group].theta["0.weight"], value.detach()[group])


def test_a_network_without_exact_groups_is_refused(data: list[Batch]) -> None:
    frozen = trace(nn.Linear(3, 2).double().eval(), torch.randn(2, 3, dtype=torch.float64))
    with pytest.raises(MorphirError, match="no channel group of this network can be split"):
        list(Study(["batch"], ["batch"]).run(problem(frozen, data, ()), data))
