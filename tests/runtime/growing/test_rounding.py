"""Widths as multiples: against a search over all selections, and at the end of whole runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from morphir import GrowthConfig, Prune, Score, Split, grow, trace
from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.runtime.growing.events import Event, GraphRewritten
from morphir.runtime.growing.rounding import channels_per_group, rounded
from morphir.runtime.growing.selection import Selection, net_gain
from passes.transform import transform

WIDTH = 5


def network() -> Graph:
    torch.manual_seed(0)
    layers = (nn.Linear(4, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    return trace(nn.Sequential(*layers).double(), torch.randn(2, 4).double())


NETWORK = network()


def scored(split_gains: Sequence[int], prune_gains: Sequence[int]) -> list[Score]:
    splits = [Score(Split("0", group), -gain / 10, 0, 0) for group, gain in enumerate(split_gains)]
    prunes = [Score(Prune("0", group), -gain / 10, 0, 0) for group, gain in enumerate(prune_gains)]
    return splits + prunes


def width_after(selection: Selection) -> int:
    return WIDTH + selection.count("split") - selection.count("prune")


def all_selections(scores: Sequence[Score]) -> list[list[Score]]:
    """Every way to split, prune or leave each group."""
    options = [[None, scores[group], scores[WIDTH + group]] for group in range(WIDTH)]
    return [[score for score in chosen if score is not None] for chosen in itertools.product(*options)]


def changes(one: Sequence[Score], other: Sequence[Score]) -> int:
    return len(set(map(id, one)) ^ set(map(id, other)))


def turned(one: Sequence[Score], other: Sequence[Score]) -> bool:
    """Whether a group is split in one and pruned in the other: what is withdrawn is not turned round."""
    kinds = {score.morphism.index: score.morphism.kind for score in one}
    return any(kinds.get(score.morphism.index, score.morphism.kind) != score.morphism.kind for score in other)


@given(
    st.permutations(range(2 * WIDTH)),
    st.lists(st.sampled_from(["", "split", "prune"]), min_size=WIDTH, max_size=WIDTH),
    st.integers(2, 4),
    st.integers(1, 3),
)
def test_the_fewest_changes_of_one_direction_and_the_best(
    gains: list[int], chosen: list[str], multiple: int, least: int
) -> None:
    scores = scored(gains[:WIDTH], gains[WIDTH:])
    own = [scores[group + WIDTH * (kind == "prune")] for group, kind in enumerate(chosen) if kind]
    before = Selection(tuple(own), ())
    config = GrowthConfig(width_multiple=multiple, min_width=least)
    after = rounded(NETWORK, before, scores, config)
    groups = [morphism.index for morphism in after.morphisms]
    assert len(groups) == len(set(groups))
    width = width_after(before)
    distance = abs(width_after(after) - width)
    assert changes(after.taken, own) == distance, "nothing is both withdrawn and added"
    down, up = width - width % multiple, width + -width % multiple
    reachable = [
        abs(target - width)
        for target in {down, up}
        if (target >= max(least, 1) or target >= width)
        and any(
            changes(rival, own) == abs(target - width)
            and width_after(Selection(tuple(rival), ())) == target
            and not turned(own, rival)
            for rival in all_selections(scores)
        )
    ]
    if reachable:
        assert width_after(after) % multiple == 0
        assert distance == min(reachable)
    else:
        assert distance == 0
        assert [remark.code for remark in after.remarks] == ["width-multiple"]
    withdrawn = [score for score in own if score not in after.taken]
    assert {(r.space, r.index) for r in after.remarks if r.index is not None} == {
        (score.morphism.space, score.morphism.index) for score in withdrawn
    }
    # Of all selections as near as that one, and in its direction, none gains more.
    rivals = [
        rival
        for rival in all_selections(scores)
        if width_after(Selection(tuple(rival), ())) == width_after(after)
        and changes(rival, own) == distance
        and not turned(own, rival)
    ]
    # Withdrawing comes before adding, so that no more than needed is done to the network.
    fewest = min(map(len, rivals))
    total = max(sum(net_gain(s, config.prices) for s in rival) for rival in rivals if len(rival) == fewest)
    assert sum(net_gain(score, config.prices) for score in after.taken) == pytest.approx(total)


@pytest.mark.parametrize(
    ("chosen", "multiple", "up", "width"),
    [
        ((), 4, True, 4),
        ((), 3, True, 6),
        ((), 3, False, 3),
        ((0, 1), 4, True, 8),
        ((0, 1), 4, False, 4),
        ((), 5, True, 5),
        ((), 16, True, 5),
    ],
)
def test_the_nearer_multiple(chosen: tuple[int, ...], multiple: int, up: bool, width: int) -> None:
    scores = scored(range(WIDTH), range(WIDTH))
    before = Selection(tuple(scores[group] for group in chosen), ())
    after = rounded(NETWORK, before, scores, GrowthConfig(width_multiple=multiple), up=up)
    assert width_after(after) == width
    graph = network()
    transform(graph, after.morphisms)
    assert graph.spaces["0"].width == width


def test_what_is_switched_off_is_not_used() -> None:
    scores = scored(range(WIDTH), range(WIDTH))
    only_splits = GrowthConfig(width_multiple=4, prunes=False)
    assert width_after(rounded(NETWORK, Selection((), ()), scores, only_splits)) == 8
    only_prunes = GrowthConfig(width_multiple=3, splits=False)
    assert width_after(rounded(NETWORK, Selection((), ()), scores, only_prunes)) == 3


def test_groups_of_several_channels() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=4), nn.Conv2d(12, 6, 1), nn.Conv2d(6, 2, 1)
    )
    graph = trace(model, torch.randn(2, 3, 5, 5))
    space = graph.spaces["0"]
    channels = channels_per_group(space)
    assert channels == 12 // space.width == 4
    scores = [Score(Split("0", group), -1.0, 0, 0) for group in range(space.width)]
    already = rounded(graph, Selection((), ()), scores, GrowthConfig(width_multiple=2))
    assert already == Selection((), ())
    after = rounded(graph, Selection((), ()), scores, GrowthConfig(width_multiple=8))
    assert (space.width + len(after.taken)) * channels == 16


def _data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(96, 3, 8, 8, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0).long() + 2 * (images[:, 0].mean((1, 2)) > 0).long()
    return list(zip(images.split(16), labels.split(16), strict=True))


def _graph() -> Graph:
    torch.manual_seed(0)
    block = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
    block += [nn.Conv2d(6, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU()]
    block += [nn.Conv2d(7, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return trace(nn.Sequential(*block, nn.Linear(5, 4)), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("halvings", [0, 3])
def test_a_run_ends_with_multiples(halvings: int) -> None:
    options: dict[str, object] = {"phases": 2, "train_epochs": 1, "final": "none", "width_multiple": 4}
    config = GrowthConfig.preset("demo", **options, theta_halvings=halvings, plan_halvings=halvings)
    graph = _graph()
    records = grow(graph, _data(), functional.cross_entropy, config=config).phases
    assert [space.width % 4 for name, space in graph.spaces.items() if name != "10"] == [0, 0, 0]
    assert len(records) == 2


@pytest.mark.parametrize(("multiple", "reached"), [(4, True), (16, False)])
def test_a_budget_holds(multiple: int, *, reached: bool) -> None:
    graph = _graph()
    budget = sum(parameter.numel() for parameter in graph.parameters())
    options = {"phases": 1, "train_epochs": 1, "final": "none", "max_parameters": budget}
    config = GrowthConfig.preset("demo", **options, width_multiple=multiple)
    found: list[GraphRewritten] = []

    def keep(event: Event) -> None:
        if isinstance(event, GraphRewritten):
            found.append(event)

    grow(graph, _data(), functional.cross_entropy, config=config, callbacks=[keep])
    assert sum(parameter.numel() for parameter in graph.parameters()) <= budget
    off = [name for name, space in graph.spaces.items() if name != "10" and space.width % multiple]
    assert (not off) is reached
    assert {r.space for r in found[0].remarks if r.code == "width-multiple" and r.index is None} == set(off)


def test_the_last_phase_alone_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[Morphism]] = []

    def watched(graph: Graph, selection: Selection, *_: object, **__: object) -> Selection:
        asked.append(selection.morphisms)
        return selection

    monkeypatch.setattr("morphir.runtime.growing.backtracking.rounded", watched)
    config = GrowthConfig.preset("demo", phases=3, train_epochs=1, final="none", width_multiple=4)
    grow(_graph(), _data(), functional.cross_entropy, config=config)
    assert len(asked) == 1
