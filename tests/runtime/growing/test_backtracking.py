"""Backtracking against losses that are known in closed form, and against networks that overshoot."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from morphir.analysis.tracing import trace
from morphir.errors import RewriteError
from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.growing import line_search
from morphir.runtime.growing.backtracking import Appraisal, planned, tried
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.line_search import scaled
from morphir.runtime.growing.selection import Selection
from morphir.runtime.learning.learner import Learner, Score
from passes.transform import transform

WIDTH = 6


def network(depth: int = 1) -> Graph:
    torch.manual_seed(0)
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh())]
    return trace(nn.Sequential(*hidden, nn.Linear(WIDTH, 3)).double().eval(), torch.randn(2, WIDTH).double())


def scores(*morphisms: tuple[Morphism, float]) -> list[Score]:
    return [Score(morphism, change, 0, 0) for morphism, change in morphisms]


def all_of(candidates: Sequence[Score], shares: Mapping[str, float] | None = None) -> Selection:
    del shares
    return Selection(tuple(candidates), ())


def split(index: int) -> tuple[Morphism, float]:
    theta = torch.zeros(WIDTH, dtype=torch.float64)
    theta[0] = 1.0
    return Split("0", index, {"0.weight": theta}), -1.0


def config(*factors: float, halvings: int = 6, plans: int = 0, **prices: float) -> GrowthConfig:
    return GrowthConfig(theta_factors=factors, theta_halvings=halvings, plan_halvings=plans, **prices)


def free(morphisms: Sequence[Morphism]) -> float:
    return 0.0


def judged(
    loss_of: Callable[[Graph], float],
    price_of: Callable[[Sequence[Morphism]], float] = free,
    fit: Callable[[Selection], Selection] = lambda selection: selection,
) -> Appraisal:
    return Appraisal(loss_of, price_of, all_of, fit)


def recorded(
    graph: Graph, loss: Callable[[float, int], float]
) -> tuple[Callable[[Graph], float], list[float]]:
    """A loss of theta's factor, which is read off the rewritten kernel, and of the number of new units."""
    seen: list[float] = []
    kernel = graph.get_parameter("0.weight").detach().clone()

    def loss_of(candidate: Graph) -> float:
        rows = candidate.get_parameter("0.weight").detach()
        factor = float(rows[0, 0] - kernel[0, 0])
        seen.append(factor)
        return loss(factor, len(rows) - len(kernel))

    return loss_of, seen


def test_theta_is_halved_until_the_loss_no_longer_rises() -> None:
    graph = network()
    loss_of, seen = recorded(graph, lambda factor, _: 1.0 + factor * (factor - 0.1))
    plan = planned(graph, scores(split(0)), config(1.0, 0.5), judged(loss_of))
    assert seen == pytest.approx([0.0, 1.0, 0.5, 0.25, 0.125, 0.0625])
    assert [trial.factor for trial in plan.trials] == [1.0, 0.5, 0.25, 0.125, 0.0625]
    assert plan.factor == 0.0625
    assert not graph.history


def test_a_believable_plan_is_taken_with_its_best_factor() -> None:
    graph = network()
    loss_of, seen = recorded(graph, lambda factor, _: (factor - 0.6) ** 2)
    plan = planned(graph, scores(split(0), split(3)), config(1.0, 0.5), judged(loss_of))
    assert plan.factor == 0.5
    assert len(seen) == 3
    assert plan.selection.count("split") == 2


def test_theta_ends_small_where_nothing_helps() -> None:
    graph = network()
    loss_of, _ = recorded(graph, lambda factor, new: float(new))
    plan = planned(graph, scores(split(0), split(3)), config(1.0, halvings=2), judged(loss_of))
    assert [trial.factor for trial in plan.trials] == [1.0, 0.5, 0.25]
    assert plan.selection.count("split") == 2


@pytest.mark.parametrize(("most", "kept"), [(4, [1, 2, 3, 4]), (3, [2, 4]), (1, [4]), (0, [])])
def test_so_many_prunes_as_make_loss_and_price_smallest(most: int, kept: list[int]) -> None:
    """Each is worth 0.1 until there are too many; the cheapest stay, whatever their order."""
    graph = network()
    costs = {1: 0.03, 2: 0.02, 3: 0.04, 4: 0.01}
    chosen = scores(split(0), *((Prune("0", index), cost) for index, cost in costs.items()))
    loss_of, _ = recorded(graph, lambda factor, new: 5.0 if -new > most else 0.0)

    def worth(morphisms: Sequence[Morphism]) -> float:
        return -0.1 * sum(morphism.kind == "prune" for morphism in morphisms)

    plan = planned(graph, chosen, config(1.0, 0.5, plans=2), judged(loss_of, worth))
    assert [m.index for m in plan.selection.morphisms if m.kind == "prune"] == kept
    assert plan.selection.count("split") == 1
    assert {(r.code, r.index) for r in plan.selection.remarks} == {
        ("not-worth-it-together", index) for index in set(costs) - set(kept)
    }


def test_prunes_that_raise_the_loss_are_left_out_where_they_are_worth_nothing() -> None:
    graph = network()
    loss_of, _ = recorded(graph, lambda factor, new: 1.0 - 0.1 * new)
    plan = planned(
        graph, scores((Prune("0", 1), -0.5), (Prune("0", 2), -0.4)), config(1.0, plans=2), judged(loss_of)
    )
    assert not plan.selection.taken
    assert plan.best.loss == 1.0


def test_a_prune_that_is_worth_it_comes_before_the_split_of_its_group() -> None:
    graph = network()
    chosen = scores(split(0), split(2), (Prune("0", 2), -0.1))
    loss_of, _ = recorded(graph, lambda factor, new: 1.0 + 0.1 * new - factor)
    plan = planned(graph, chosen, config(1.0, plans=2), judged(loss_of))
    assert [(m.kind, m.index) for m in plan.selection.morphisms] == [("prune", 2), ("split", 0)]
    assert [(r.code, r.index) for r in plan.selection.remarks] == [("other-is-better", 2)]


def each(morphisms: Sequence[Morphism]) -> float:
    return 0.1 * sum(morphism.kind == "split" for morphism in morphisms)


def test_the_splits_that_gain_most_for_their_price_stay_while_loss_and_price_fall() -> None:
    """Two splits at theta times 0.5 do as much as six at 0.25: four of them are not worth their price."""
    graph = network()
    changes = [-1.0, -6.0, -2.0, -5.0, -4.0, -3.0]
    thetas = {index: split(index)[0] for index in range(WIDTH)}
    chosen = scores(*((thetas[index], change) for index, change in enumerate(changes)))
    kernel = graph.get_parameter("0.weight").detach().clone()

    def loss_of(candidate: Graph) -> float:
        rows = candidate.get_parameter("0.weight").detach()
        new = len(rows) - WIDTH
        step = float((rows[:, 0].max() - kernel[:, 0].max()).abs()) if new else 0.0
        overshoot = new * step
        return 1.0 - overshoot * (2.0 - overshoot) if new else 1.0

    plan = planned(graph, chosen, config(1.0, 0.5, 0.25, plans=6), judged(loss_of, each))
    kept = [m.index for m in plan.selection.morphisms]
    tried_out = [(t.splits, t.factor) for t in plan.trials]
    assert tried_out[:3] == [(6, 1.0), (6, 0.5), (6, 0.25)]
    best_by_hand = min(
        ((k, f) for k in (6, 3, 1) for f in (1.0, 0.5, 0.25)),
        key=lambda at: 1.0 - at[0] * at[1] * (2.0 - at[0] * at[1]) + 0.1 * at[0],
    )
    assert (plan.best.splits, plan.factor) == best_by_hand == (1, 1.0)
    assert kept == [1]
    assert {(r.code, r.index) for r in plan.selection.remarks} == {
        ("not-worth-it-together", index) for index in (0, 2, 3, 4, 5)
    }


def test_of_half_of_the_splits_each_space_keeps_its_best() -> None:
    """Those of the second space gain more, and would be all that is left."""
    graph = network(depth=2)
    other = torch.zeros(WIDTH, dtype=torch.float64)
    chosen = scores(
        *((split(index)[0], -1.0 - index) for index in (0, 1)),
        *((Split("2", index, {"2.weight": other}), -5.0 - index) for index in (0, 1)),
    )

    def loss_of(candidate: Graph) -> float:
        return 1.0 if len(candidate.get_parameter("0.weight")) == WIDTH else 0.5

    plan = planned(graph, chosen, config(1.0, plans=1), judged(loss_of, each))
    assert [(m.space, m.index) for m in plan.selection.morphisms] == [("0", 1), ("2", 1)]


def test_splits_are_chosen_by_what_the_channels_of_their_space_are_worth() -> None:
    graph = network(depth=2)
    chosen = scores(
        split(0), (Prune("0", 1), 0.3), (Prune("0", 2), 0.5), (Prune("2", 0), 0.1), (Prune("2", 3), 0.1)
    )
    chosen = [replace(score, delta_parameters=-10) for score in chosen]
    asked: list[Mapping[str, float]] = []

    def select(candidates: Sequence[Score], shares: Mapping[str, float]) -> Selection:
        asked.append(shares)
        return Selection(tuple(score for score in candidates if score.delta_loss < 0), ())

    planned(graph, chosen, config(1.0, plans=1), replace(judged(lambda graph: 1.0), select=select))
    assert asked == [{}, pytest.approx({"0": 1.0, "2": 0.1 / 0.25})]


def test_no_split_is_left_where_none_is_worth_its_price() -> None:
    graph = network()
    chosen = scores(split(0), split(3), (Prune("0", 2), 0.5))
    loss_of, _ = recorded(graph, lambda factor, new: 1.0 - 0.05 * factor)
    plan = planned(graph, chosen, config(1.0, 0.5, plans=2), judged(loss_of, each))
    assert [str(m.kind) for m in plan.selection.morphisms] == ["prune"]
    assert plan.best.splits == 0
    cheap = planned(graph, chosen, config(1.0, 0.5, plans=2), judged(loss_of))
    assert (cheap.selection.count("split"), cheap.factor) == (2, 1.0)


def test_what_is_left_of_the_prunes_decides_what_budgets_allow() -> None:
    """Three prunes made room for two splits; one is left, and the split that gains least goes too."""
    graph = network()
    worse = (split(3)[0], -0.5)
    chosen = scores(split(0), worse, *((Prune("0", index), 0.1) for index in (1, 2, 4)))

    def fit(rest: Selection) -> Selection:
        room = rest.count("prune")
        splits = [s for s in rest.taken if s.morphism.kind == "split"]
        over = {id(s) for s in sorted(splits, key=lambda s: s.delta_loss)[room:]}
        return Selection(tuple(s for s in rest.taken if id(s) not in over), rest.remarks)

    loss_of, _ = recorded(graph, lambda factor, new: 5.0 if new < -1 else 0.0)
    plan = planned(graph, chosen, config(1.0, plans=2), judged(loss_of, fit=fit))
    assert [(m.kind, m.index) for m in plan.selection.morphisms] == [("prune", 1), ("split", 0)]


def test_a_plan_that_the_rewriter_refuses_is_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the splits would gain more, but the program does not follow them alone."""
    graph = network()
    applied = line_search.transform

    def refusing(candidate: Graph, morphisms: Sequence[Morphism]) -> object:
        if len(morphisms) == 1:
            raise RewriteError("the program does not follow the rewrite", code="does-not-follow")
        return applied(candidate, morphisms)

    monkeypatch.setattr(line_search, "transform", refusing)
    loss_of, _ = recorded(graph, lambda factor, new: 1.0 + new - 3 * factor)
    plan = planned(graph, scores(split(0), split(3)), config(1.0, plans=3), judged(loss_of))
    assert plan.selection.count("split") == 2
    assert (plan.best.splits, plan.best.loss) == (2, 0.0)


def test_an_empty_selection_is_left_alone() -> None:
    def never(graph: Graph) -> float:
        raise AssertionError

    plan = planned(network(), [], config(1.0), judged(never))
    assert (plan.selection.taken, plan.trials) == ((), ())


def test_nothing_is_evaluated_for_the_papers_way() -> None:
    def never(graph: Graph) -> float:
        raise AssertionError

    for way in (
        tried(network(), all_of(scores(split(0))), (1.0,), never),
        planned(network(), scores(split(0)), config(1.0, halvings=0), judged(never)),
    ):
        assert way.factor == 1.0
        assert math.isnan(way.trials[0].loss)


def test_the_loss_of_a_deep_network_does_not_rise_where_the_whole_selection_raises_it() -> None:
    graph = network(depth=4)
    inputs, labels = torch.randn(64, WIDTH).double(), torch.randint(0, 3, (64,))

    def loss_of(candidate: Graph) -> float:
        return float(functional.cross_entropy(candidate(inputs), labels).detach())

    optimizer = torch.optim.Adam(graph.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(graph(inputs), labels).backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    learner = Learner(graph, functional.cross_entropy, learn_curvature="none", init_scale=0.5, lr=0.3)
    for _ in range(40):
        learner.step(inputs, labels)
    splits = [score for score in learner.scores() if score.morphism.kind == "split"]
    before = loss_of(graph)
    assert rise(graph, [score.morphism for score in splits], loss_of) > 0
    plan = planned(graph, splits, config(1.0, 0.5, halvings=8), judged(loss_of))
    assert loss_of(graph) == before
    assert rise(graph, scaled(plan.selection.morphisms, plan.factor), loss_of) <= 0


def rise(graph: Graph, morphisms: Sequence[Morphism], loss_of: Callable[[Graph], float]) -> float:
    changed = copy.deepcopy(graph)
    transform(changed, morphisms)
    return loss_of(changed) - loss_of(graph)
