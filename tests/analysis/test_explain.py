"""Explanations: the way from a group to what restricts it is a shortest chain of real ties, in words."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import morphir
from morphir.analysis.coupling import couple
from morphir.analysis.execution import execute
from morphir.analysis.explain import explain
from morphir.analysis.explanation import Explanation, Site, ranges
from morphir.analysis.tracing import trace
from morphir.errors import MorphirError
from morphir.ir.codes import CODES
from morphir.ir.graph import Graph
from morphir.morphisms.split import Split
from morphir.seeds import ResNet20
from passes.transform import transform


class Net(nn.Module):
    """Submodules by name, and a forward that is a plain function of them."""

    def __init__(self, forward: Callable[..., object], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.body = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


def projected_to_norm(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    out = net.down(x)
    out = net.conv(x.relu()) + out
    return net.fc(net.norm(out.mean((2, 3))))


def added_to_input(net: Net, x: Tensor) -> Tensor:
    out = net.two(net.one(x).relu()) + net.three(x)
    return net.fc((x + out).mean((2, 3)))


def shuffled(net: Net, x: Tensor) -> Tensor:
    x = net.norm(net.grouped(net.stem(x)))
    x = x.view(x.size(0), 2, 4, x.size(2), x.size(3)).transpose(1, 2).flatten(1, 2)
    left, right = x.chunk(2, 1)
    return net.fc((left * right.sigmoid()).mean((2, 3)))


def image_net(forward: Callable[..., object], **parts: nn.Module) -> Graph:
    return trace(Net(forward, **parts), torch.randn(2, 3, 6, 6))


def norm_net() -> Graph:
    return image_net(
        projected_to_norm,
        stem=nn.Conv2d(3, 4, 1),
        conv=nn.Conv2d(4, 2, 3, padding=1),
        down=nn.Conv2d(4, 2, 1),
        norm=nn.LayerNorm(2),
        fc=nn.Linear(2, 5),
    )


def input_net() -> Graph:
    return image_net(
        added_to_input,
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(4, 3, 1),
        three=nn.Conv2d(3, 3, 1),
        fc=nn.Linear(3, 5),
    )


def shuffled_net() -> Graph:
    return image_net(
        shuffled,
        stem=nn.Conv2d(3, 8, 1),
        grouped=nn.Conv2d(8, 8, 1, groups=2),
        norm=nn.GroupNorm(4, 8),
        fc=nn.Linear(4, 5),
    )


def resnet() -> Graph:
    graph = trace(ResNet20(width=2), torch.zeros(2, 3, 8, 8))
    transform(graph, [Split("conv1", 1)])
    return graph


NETS = (norm_net, input_net, shuffled_net, resnet)


def distances(ties: Iterable[tuple[int, int]], starts: Iterable[int]) -> dict[int, int]:
    """Breadth-first search without the help of a library."""
    near: dict[int, list[int]] = {}
    for left, right in ties:
        near.setdefault(left, []).append(right)
        near.setdefault(right, []).append(left)
    found = dict.fromkeys(starts, 0)
    queue = deque(found)
    while queue:
        here = queue.popleft()
        for there in near.get(here, ()):
            if there not in found:
                found[there] = found[here] + 1
                queue.append(there)
    return found


class Labels:
    """A labelled run of a graph, and its ties as a plain table."""

    def __init__(self, graph: Graph) -> None:
        self.execution = execute(graph)
        self.ties: dict[tuple[int, int], set[tuple[str, str]]] = {}
        for tie in couple(self.execution).ties:
            for pair in zip(tie.left.tolist(), tie.right.tolist(), strict=True):
                self.ties.setdefault(pair, set()).add((tie.code, tie.node))
                self.ties.setdefault((pair[1], pair[0]), set()).add((tie.code, tie.node))

    def of(self, site: Site) -> list[int]:
        key = f"input:{site.tensor[1:]}:0" if site.tensor.startswith("%") else site.tensor
        return [self.execution.axes.first[key, site.axis] + entry for entry in site.entries]


@pytest.mark.parametrize("make", NETS)
def test_paths_are_shortest_chains_of_real_ties(make: Callable[[], Graph]) -> None:
    graph = make()
    labels = Labels(graph)
    for space in graph.spaces.values():
        for index, verdict in enumerate(space.verdicts):
            (group,) = explain(graph, space.name, index).groups
            assert (group.space, group.groups, group.verdict) == (space.name, (index,), verdict)
            first = space.producers[0]
            binding = space.binding(first.parameter, first.out_axis)
            assert binding is not None and (group.start.tensor, group.start.axis) == (
                *(first.parameter, first.out_axis),
            )
            rows = tuple(entry for entry, owner in enumerate(binding.groups) if owner == index)
            assert group.start.entries[0] in rows
            here = labels.of(group.start)
            for step in group.path:
                assert labels.of(step.here) == here
                here = labels.of(step.there)
                assert (step.code, step.node) in labels.ties[*labels.of(step.here), *here]
            targets = [
                label
                for r in labels.execution.facts.restrictions
                if (r.code, r.reason, r.node) == (verdict.code, verdict.reason, verdict.node)
                for label in r.labels.tolist()
            ]
            starts = [labels.of(Site(first.parameter, first.out_axis, (row,)))[0] for row in rows]
            far = distances(labels.ties, starts)
            reached = [far[target] for target in targets if target in far]
            assert len(group.path) == min(reached, default=0)
            assert not reached or here[0] in targets


@pytest.mark.parametrize("make", NETS)
def test_ties_connect_all_producers_and_touches_are_the_bindings(make: Callable[[], Graph]) -> None:
    graph = make()
    labels = Labels(graph)
    for space in graph.spaces.values():
        for index in range(space.width):
            (group,) = explain(graph, space.name, index).groups
            bound = {
                (b.parameter, b.axis): tuple(entry for entry, owner in enumerate(b.groups) if owner == index)
                for b in space.bindings
            }
            touched = {(site.tensor, site.axis): site.entries for site in group.touches}
            assert touched == {axis: entries for axis, entries in bound.items() if entries}
            edges = {(c.node, c.parameter) for c in space.consumers if index in c.groups}
            assert {(site.node, site.tensor) for site in group.consumers} == edges
            rows = [
                row
                for producer in space.producers
                for row in labels.of(
                    Site(producer.parameter, producer.out_axis, bound[producer.parameter, producer.out_axis])
                )
            ]
            said = {
                pair
                for step in group.ties
                for pair, why in labels.ties.items()
                if (step.code, step.node) in why
                and pair[0] in labels.of(step.here)
                and pair[1] in labels.of(step.there)
            }
            assert set(rows) <= distances(said, rows[:1]).keys()


def test_a_prune_only_group_in_words() -> None:
    text = str(morphir.explain(norm_net(), "down", 1))
    lines = [line.split("test_explain.py:") for line in text.splitlines()]
    assert [parts[0].strip() for parts in lines] == [
        "down[1]: prune-only [channel-norm]",
        "down[1] (",
        "-> conv[1] (",
        "=> a layer norm mixes the channels at %norm (",
        f"hint: {CODES['channel-norm'].suggestion}",
        "made by  down[1] (",
        "conv[1] (",
        "since    conv[1] (",
        "kept by  down[1]: bias (",
        "conv[1]: bias (",
        "norm[1]: weight, bias (",
        "read by  fc.weight[:, 1] (",
    ]
    assert "they meet at the same position of %add (test_explain.py:" in text
    offset = projected_to_norm.__code__.co_firstlineno
    assert f"down[1] (test_explain.py:{offset + 2})" in text
    assert f"-> conv[1] (test_explain.py:{offset + 3})" in text
    assert f"at %norm (test_explain.py:{offset + 4}): prune-only" in text


def test_a_frozen_group_leads_to_the_model_input() -> None:
    graph = input_net()
    (group,) = explain(graph, "two", 2).groups
    assert (group.verdict.kind, group.verdict.code) == ("frozen", "model-input")
    assert [step.code for step in group.path] == ["same-position"]
    (step,) = group.path
    assert (step.here.text, step.there.text, step.node) == ("two[2]", "%x[:, 2]", "add_1")
    assert "channel of the model input 'x' at %x" in str(group)
    assert "read by" not in str(group)


def test_like_groups_are_gathered() -> None:
    (stem,) = explain(norm_net(), "stem").groups
    assert (stem.groups, stem.path, stem.others) == ((0, 1, 2, 3), (), ())
    assert str(stem).splitlines()[0] == "stem[0-3]: exact (sites are those of group 0)"

    def half_out(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        x = net.conv(x)
        return x[:, :2], net.fc(F.relu(x[:, 2:]).mean((2, 3)))

    graph = image_net(half_out, conv=nn.Conv2d(3, 6, 1), fc=nn.Linear(4, 5))
    found = explain(graph, "conv")
    assert [(g.verdict.kind, g.groups) for g in found.groups] == [("frozen", (0, 1)), ("exact", (2, 3, 4, 5))]
    assert found.width == 6


def test_every_tie_of_a_shuffle_has_words() -> None:
    graph = shuffled_net()
    steps = [step for name in graph.spaces for g in explain(graph, name).groups for step in g.ties]
    assert {"equal-per-conv-group", "equal-per-norm-group"} <= {step.code for step in steps}
    assert all(step.node and CODES[step.code].kind == "tie" and "{" not in step.reason for step in steps)


def test_ties_that_close_a_shuffle_name_its_view() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.conv(x)
        x = x.view(2, 2, 3, 6, 6).transpose(1, 2).reshape(2, 6, 6, 6)
        return net.fc(x.mean((2, 3)))

    graph = image_net(forward, conv=nn.Conv2d(3, 6, 1), fc=nn.Linear(6, 2))
    ties = [tie for tie in couple(execute(graph)).ties if tie.code == "same-inner-index"]
    assert [tie.node for tie in ties] == ["view"]
    (group,) = explain(graph, "conv").groups
    assert [(step.there.text, step.here.text, step.code) for step in group.ties] == [
        ("conv[3]", "conv[0]", "same-inner-index")
    ]


def test_other_restrictions_are_named() -> None:
    def twice(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        x = net.conv(x)
        return x, F.softmax(x.mean((2, 3)), 1)

    graph = image_net(twice, conv=nn.Conv2d(3, 4, 1))
    (group,) = explain(graph, "conv").groups
    assert (group.verdict.code, [other.code for other in group.others]) == (
        *("model-output",),
        ["channel-softmax"],
    )
    assert "  also prune-only: a softmax runs over the channels [channel-softmax]" in str(group)


def test_a_wiring_that_freezes_is_explained_by_its_verdict() -> None:
    def tied(net: Net, x: Tensor) -> Tensor:
        x = F.linear(net.one(x.mean((2, 3))), net.weight).relu()
        return net.fc(F.linear(x, net.weight.t()))

    parts = {"one": nn.Linear(3, 4), "weight": nn.Parameter(torch.randn(5, 4)), "fc": nn.Linear(4, 2)}
    graph = trace(Net(tied, **parts), torch.randn(2, 3, 6, 6))
    (group,) = explain(graph, "one").groups
    assert (group.verdict.code, group.path) == ("tied-parameter", ())
    assert "=> weight makes channels in one place and reads them in another" in str(group)


def test_json_holds_the_same() -> None:
    found = explain(norm_net(), "down")
    data = found.to_json()
    (group,) = data["groups"]
    assert (data["space"], data["width"], group["groups"]) == ("down", 2, [0, 1])
    assert group["verdict"]["suggestion"] == CODES["channel-norm"].suggestion
    (step,) = group["path"]
    assert (step["here"]["tensor"], step["there"]["tensor"]) == ("down.weight", "conv.weight")
    assert step["source"].startswith("test_explain.py:") and step["code"] == "same-position"
    assert isinstance(found, Explanation)


def test_unknown_spaces_and_groups() -> None:
    graph = norm_net()
    with pytest.raises(MorphirError, match="no channel space 'nowhere'"):
        explain(graph, "nowhere")
    with pytest.raises(MorphirError, match="no channel group 9"):
        explain(graph, "down", 9)
    with pytest.raises(MorphirError, match=r"expected a morphir\.Graph"):
        explain(nn.Linear(2, 2), "down")  # type: ignore[arg-type]


def test_ranges() -> None:
    assert [ranges(numbers) for numbers in ((), (4,), (0, 1, 2, 5, 7, 8))] == ["", "4", "0-2, 5, 7-8"]
    assert [ranges(numbers) for numbers in ((0, 3, 6), (1, 4, 7, 10))] == ["0, 3, 6", "1-10 by 3"]
