from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence

import pytest

from morphir.morphisms.base import Morphism
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.selection import (
    Selection,
    net_gain,
    select,
    within_budgets,
)
from morphir.runtime.learning.learner import Score


def split(index: int, delta_loss: float, cost: int = 10, space: str = "a") -> Score:
    return Score(Split(space, index), delta_loss, cost, 100 * cost)


def prune(index: int, delta_loss: float, cost: int = -10, space: str = "a") -> Score:
    return Score(Prune(space, index), delta_loss, cost, 100 * cost)


def names(selection: Selection) -> list[str]:
    return [str(morphism) for morphism in selection.morphisms]


def codes(selection: Selection) -> dict[tuple[str | None, int | None, str], str]:
    return {(r.space, r.index, r.message.split(":")[0]): r.code for r in selection.remarks}


def affordable(
    scores: Sequence[Score], widths: Mapping[str, int], config: GrowthConfig, **used: int
) -> Selection:
    """Where the changes of the resources add up."""
    costs = {score.morphism: (score.delta_parameters, score.delta_macs) for score in scores}

    def measure(morphisms: Sequence[Morphism]) -> Mapping[str, float]:
        changes = [sum(parts) for parts in zip((0, 0), *(costs[m] for m in morphisms), strict=True)]
        return {name: used.get(name, 0) + d for name, d in zip(("parameters", "macs"), changes, strict=True)}

    return within_budgets(select(scores, widths, config), config, measure)


ALL = GrowthConfig(lambda_parameters=0.01, best_fraction=1.0)


def test_pays_means_more_loss_than_the_resources_are_worth() -> None:
    scores = [split(0, -0.11), split(1, -0.1), split(2, -0.09), prune(3, 0.09), prune(4, 0.11)]
    selection = select(scores, {"a": 8}, ALL)
    assert names(selection) == ["prune a[3]", "split a[0]"] or names(selection) == [
        "split a[0]",
        "prune a[3]",
    ]
    assert set(codes(selection).values()) == {"does-not-pay"}
    assert net_gain(scores[0], {"parameters": 0.01, "macs": 1e-4}) == pytest.approx(0.11 - 0.1 - 0.1)


def test_of_one_group_the_better_morphism() -> None:
    selection = select([split(0, -0.5), prune(0, -0.1), split(1, -0.2), prune(1, -0.4)], {"a": 4}, ALL)
    assert set(names(selection)) == {"split a[0]", "prune a[1]"}
    assert codes(selection) == {("a", 0, "prune"): "other-is-better", ("a", 1, "split"): "other-is-better"}


def test_best_share_of_each_space_rounded_up() -> None:
    config = GrowthConfig(best_fraction=0.3)
    scores = [split(i, -1.0 - i, space=space) for space, count in (("a", 10), ("b", 4)) for i in range(count)]
    selection = select(scores, {"a": 10, "b": 4}, config)
    assert names(selection) == ["split a[9]", "split a[8]", "split a[7]", "split b[3]", "split b[2]"]
    assert set(codes(selection).values()) == {"not-among-best"}


def test_some_spaces_get_a_part_of_the_share() -> None:
    scores = [split(i, -1.0 - i, space=space) for space in "abc" for i in range(4)]
    widths = {"a": 10, "b": 10, "c": 10}
    selection = select(scores, widths, GrowthConfig(best_fraction=0.75), shares={"b": 0.5, "c": 0.0})
    assert names(selection) == ["split a[3]", "split a[2]", "split a[1]", "split b[3]", "split b[2]"]
    assert set(codes(selection).values()) == {"not-among-best"}
    assert len(selection.taken) + len(selection.remarks) == len(scores)


def test_a_space_is_never_pruned_to_nothing() -> None:
    scores = [prune(i, -float(i + 1)) for i in range(3)]
    selection = select(scores, {"a": 3}, ALL)
    assert names(selection) == ["prune a[2]", "prune a[1]"]
    assert codes(selection) == {("a", 0, "prune"): "min-width"}
    wider = select(scores, {"a": 3}, GrowthConfig(best_fraction=1.0, min_width=3))
    assert not wider.taken
    pair = select(scores, {"a": 3}, ALL, least={"a": 2})
    assert names(pair) == ["prune a[2]"], "an operator needs two of them"


def test_switched_off_and_not_finite() -> None:
    config = GrowthConfig(best_fraction=1.0, prunes=False)
    selection = select(
        [prune(0, -1.0), split(1, math.nan), split(2, -math.inf), split(3, -1.0)], {"a": 4}, config
    )
    assert names(selection) == ["split a[3]"]
    assert sorted(codes(selection).values()) == ["disabled", "not-finite", "not-finite"]


def test_every_morphism_is_taken_or_has_a_remark() -> None:
    rng = random.Random(0)
    scores = [make(i, rng.gauss(0, 1)) for i in range(20) for make in (split, prune)]
    config = GrowthConfig(lambda_parameters=0.01, max_parameters=230)
    selection = affordable(scores, {"a": 20}, config, parameters=200)
    assert len(selection.taken) + len(selection.remarks) == len(scores)
    assert selection.count("split") + selection.count("prune") == len(selection.taken)


def test_order_of_the_scores_does_not_matter() -> None:
    rng = random.Random(1)
    scores = [
        make(i, round(rng.gauss(0, 1), 1), space=space)
        for space in "ab"
        for i in range(12)
        for make in (split, prune)
    ]
    config = GrowthConfig(best_fraction=0.5, max_parameters=400)
    once = affordable(scores, {"a": 12, "b": 12}, config, parameters=380)
    for _ in range(5):
        rng.shuffle(scores)
        assert names(affordable(scores, {"a": 12, "b": 12}, config, parameters=380)) == names(once)


@pytest.mark.parametrize("seed", range(20))
def test_takes_the_best_legal_set(seed: int) -> None:
    """Against every subset: the largest gain within the share, the width, and one morphism per group."""
    rng = random.Random(seed)
    width, min_width = 4, rng.choice([1, 3])
    scores = [make(i, rng.gauss(0, 0.3)) for i in range(width) for make in (split, prune)]
    config = GrowthConfig(
        lambda_parameters=0.01, best_fraction=rng.choice([0.3, 0.6, 1.0]), min_width=min_width
    )
    best_of: dict[int, Score] = {}
    for score in scores:
        if gain(score) > max(
            0.0, gain(best_of[score.morphism.index]) if score.morphism.index in best_of else 0.0
        ):
            best_of[score.morphism.index] = score
    paying = list(best_of.values())
    quota = math.ceil(config.best_fraction * len(paying) - 1e-9)
    legal = (
        subset
        for size in range(quota + 1)
        for subset in itertools.combinations(paying, size)
        if sum(s.morphism.kind == "prune" for s in subset) <= width - min_width
    )
    expected = max(legal, key=lambda subset: sum(map(gain, subset)))
    assert {id(s) for s in select(scores, {"a": width}, config).taken} == {id(s) for s in expected}


def gain(score: Score) -> float:
    return -score.delta_loss - 0.01 * score.delta_parameters


def test_budget_prefers_what_gains_most_for_its_cost() -> None:
    config = GrowthConfig(best_fraction=1.0, max_parameters=125)
    scores = [
        split(0, -0.9, 20),
        split(1, -0.9, 10),
        split(2, -0.5, 10),
        split(3, -0.1, 10),
        prune(4, -0.1, -5),
    ]
    selection = affordable(scores, {"a": 5}, config, parameters=100)
    assert set(names(selection)) == {"split a[1]", "split a[2]", "prune a[4]"}
    assert set(codes(selection).values()) == {"over-budget"}


def test_budget_uses_the_exact_measure() -> None:
    """Changes of neighbouring spaces multiply, so that the sum of the single changes is too small."""
    config = GrowthConfig(best_fraction=1.0, max_parameters=150)
    scores = [split(i, -1.0 - i) for i in range(5)]
    selection = within_budgets(
        select(scores, {"a": 5}, config),
        config,
        lambda morphisms: {"parameters": 100.0 + 10 * len(morphisms) ** 2},
    )
    assert names(selection) == ["split a[4]", "split a[3]"]


def test_over_budget_from_the_start_only_prunes() -> None:
    config = GrowthConfig(best_fraction=1.0, max_macs=100)
    selection = affordable([split(0, -1.0), prune(1, -1.0)], {"a": 4}, config, macs=5000)
    assert names(selection) == ["prune a[1]"]
