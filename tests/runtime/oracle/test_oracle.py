"""The oracle passes networks that are right, and catches rewrites that are not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from morphir.analysis.locality import locality
from morphir.analysis.tracing import trace
from morphir.ir.graph import Graph
from morphir.morphisms.base import Child
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.oracle import oracle
from morphir.runtime.oracle.exporting import first_difference
from morphir.runtime.oracle.oracle import TOLERANCE, Check, check_graph, relative_difference, summary
from morphir.runtime.oracle.subjects import randomise_norms
from morphir.runtime.oracle.zeroing import run_deterministic, zeroed
from morphir.seeds import resolve
from passes.transform import transform


def seed(spec: str, width: int) -> Graph:
    return trace(resolve(spec, width=width, image_size=16), torch.zeros(4, 3, 16, 16))


class Dropping(nn.Module):
    """Random layers: the comparison has to hold in train mode all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout2d(0.5)
        self.head = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stream = self.drop(torch.relu(self.norm(self.conv(images))))
        stream = nn.functional.dropout(stream.mean((2, 3)), 0.5, self.training)
        return self.head(stream)


class Mixing(nn.Module):
    """Something that mixes the channels of its first layer."""

    def __init__(self, mix: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.mix = mix
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.first(images)))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6))

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        stream = nn.functional.layer_norm(stream.permute(0, 2, 3, 1), (6,), self.weight)
        return stream.permute(0, 3, 1, 2)


class Gated(nn.Module):
    """A mean, a largest value and a softmax over the channels."""

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        gate = stream.mean(1, keepdim=True) + stream.amax(1, keepdim=True) + stream.max(1, keepdim=True)[0]
        return stream.softmax(1) * gate.sigmoid()


class CountingOnSix(nn.Module):
    """Cannot run on fewer channels as it is written; the rewriter knows how to write it anew."""

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return torch.native_layer_norm(stream, [6, 4, 4], None, None, 1e-5)[0]


@pytest.mark.parametrize(("spec", "width"), [("vgg19", 4), ("mobilenetv1", 4), ("resnet20", 4)])
def test_seeds_pass(spec: str, width: int) -> None:
    graph = seed(spec, width)
    checks = list(check_graph(graph, max_spaces=3))
    assert [check for check in checks if check.outcome == "failed"] == []
    compared = [check.difference for check in checks if check.difference is not None]
    assert compared and max(compared) < 1e-10
    assert [check.check for check in checks[-4:]] == ["plan", "export-pytorch", "retrace", "export-onnx"]


def test_the_graph_itself_is_left_alone() -> None:
    graph = seed("resnet20", 2)
    before = {key: tensor.clone() for key, tensor in graph.state_dict().items()}
    list(check_graph(graph, max_spaces=2, exports=False))
    assert graph.history == ()
    assert graph.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in graph.state_dict().items())


def test_a_wrong_scale_is_found_in_every_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Split, "children", (Child(0.6, +1), Child(0.6, -1)))
    checks = list(check_graph(seed("resnet20", 4), max_spaces=4, exports=False))
    splits = [check for check in checks if check.check == "split"]
    assert {check.outcome for check in splits if check.space != "fc"} == {"failed"}
    assert all(check.difference is None or check.difference > TOLERANCE for check in splits)
    assert all(check.source and check.source.startswith("resnet.py:") for check in splits if check.difference)
    assert {check.outcome for check in checks if check.check == "prune"} == {"ok", "refused"}
    assert summary(checks)["failed"] == len([check for check in splits if check.space != "fc"]) + 1


def test_in_company_the_same_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = seed("resnet20", 4)
    alone, company = (list(check_graph(graph, exports=False, together=way)) for way in (False, True))
    assert {(c.check, c.space, c.outcome, c.groups) for c in alone} == {
        (c.check, c.space, c.outcome, c.groups) for c in company
    }

    def wrong_in_one_space(graph: Graph, morphisms: list[Split | Prune]) -> None:
        transform(graph, morphisms)
        if any(morphism.space == "layer2.1.conv1" for morphism in morphisms):
            with torch.no_grad():
                graph.get_submodule("layer2.1.conv1").weight[-1].mul_(1.1)

    monkeypatch.setattr(oracle, "transform", wrong_in_one_space)
    checks = list(check_graph(graph, exports=False, together=True))
    failed = {(check.check, check.space) for check in checks if check.outcome == "failed"}
    assert failed == {("split", "layer2.1.conv1"), ("prune", "layer2.1.conv1"), ("plan", None)}


def test_a_prune_of_the_wrong_channel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def neighbours(graph: Graph, morphisms: list[Prune]) -> object:
        return original(
            graph, [Prune(m.space, (m.index + 1) % graph.space(m.space).width) for m in morphisms]
        )

    original = oracle.transform
    monkeypatch.setattr(oracle, "transform", neighbours)
    checks = list(check_graph(seed("vgg19", 4), max_spaces=3, exports=False))
    assert {check.outcome for check in checks if check.check == "prune"} == {"failed", "refused"}


class CoordinateBias(nn.Module):
    """Hidden channels that no model input reaches: a small network over a buffer of coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(1, 6, 6, 2))
        self.bias = nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 5))
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Conv2d(5, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(images) + self.bias(self.table).permute(0, 3, 1, 2)))


def test_channels_that_no_input_reaches_are_read_all_the_same() -> None:
    graph = trace(CoordinateBias(), torch.randn(2, 3, 6, 6))
    assert [(c.node, c.tensor) for c in graph.space("bias.0").consumers] == [("bias_2", "bias_1")]
    found = locality(graph, "bias.0")
    assert (found.y, found.region, found.a, found.z) == (("bias_0",), ("bias_1",), ("bias_1",), ("bias_2",))
    checks = list(check_graph(graph, exports=False))
    assert {(c.check, c.space) for c in checks if c.outcome == "ok"} == {
        *((check, space) for check in ("split", "prune") for space in ("bias.0", "conv")),
        ("plan", None),
    }
    assert not summary(checks)["failed"]


class HalfRead(nn.Module):
    """One convolution reads the second half of a space, the other all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = torch.relu(self.stem(images))
        return self.head(torch.cat([stem, torch.relu(self.second(stem[:, 4:]))], 1))


def test_a_consumer_may_read_none_of_the_removed_groups() -> None:
    graph = trace(HalfRead(), torch.randn(2, 3, 6, 6))
    images = torch.randn(2, 3, 6, 6)
    found = run_deterministic(
        zeroed(graph, {"stem": frozenset({1})}), ((images,), {}), training=False, seed=0
    )
    with torch.no_grad():
        graph.get_parameter("stem.weight")[1] = 0
        graph.get_parameter("stem.bias")[1] = 0
    assert torch.equal(found[0], graph(images))


def test_random_layers_do_not_disturb() -> None:
    graph = trace(Dropping(), torch.zeros(4, 3, 6, 6))
    checks = list(check_graph(graph, exports=False))
    assert summary(checks) == {"ok": 3, "refused": 2, "failed": 0}


MIXING: dict[str, Callable[[], nn.Module]] = {
    "group norm": lambda: nn.GroupNorm(2, 6),
    "layer norm": lambda: nn.LayerNorm((6, 4, 4)),
    "channels last": ChannelsLast,
    "reductions and softmax": Gated,
    "softmax module": lambda: nn.Softmax2d(),
}


@pytest.mark.parametrize("kind", MIXING)
def test_prunes_of_mixed_channels_equal_what_is_left(kind: str) -> None:
    checks = list(check_graph(trace(Mixing(MIXING[kind]()), torch.zeros(4, 3, 6, 6)), exports=False))
    found = {(check.check, check.space): check for check in checks}
    assert found["split", "first"].outcome == "refused"
    assert found["split", "first"].source is not None
    for check in (found["prune", "first"], found["plan", None]):
        assert (check.outcome, check.detail) == ("ok", "")
        assert check.difference is not None and check.difference < 1e-12
        assert check.groups > 0


def test_what_is_left_is_what_a_smaller_layer_computes() -> None:
    """Against an independent construction: the same network made with fewer channels."""
    graph = trace(Mixing(nn.GroupNorm(2, 6)), torch.zeros(2, 3, 6, 6)).to(torch.float64)
    randomise_norms(graph, 1)
    left = [0, 2, 3, 5]  # the groups of the space are the pairs (0, 3), (1, 4), (2, 5)
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)).double()
    state = graph.state_dict()
    small[0].load_state_dict({"weight": state["first.weight"][left], "bias": state["first.bias"][left]})
    small[1].load_state_dict({"weight": state["mix.weight"][left], "bias": state["mix.bias"][left]})
    small[2].load_state_dict({"weight": state["head.weight"][:, left], "bias": state["head.bias"]})
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    program = zeroed(graph, {"first": frozenset({1})}, {"mix"})
    found = run_deterministic(program, ((images,), {}), training=False, seed=0)
    assert relative_difference(found, [small(images).detach()]) < 1e-14


def test_a_prune_of_the_wrong_norm_entries_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(graph: Graph, morphisms: list[Prune]) -> None:
        transform(graph, morphisms)
        with torch.no_grad():
            graph.get_submodule("mix").weight.copy_(graph.get_submodule("mix").weight.flip(0))

    monkeypatch.setattr(oracle, "transform", swapped)
    checks = list(check_graph(trace(Mixing(nn.LayerNorm((6, 4, 4))), torch.zeros(2, 3, 6, 6)), exports=False))
    found = {(check.check, check.space): check.outcome for check in checks}
    assert found["prune", "first"] == "failed"


def test_what_cannot_run_on_less_is_said_to_be_incomparable() -> None:
    checks = list(check_graph(trace(Mixing(CountingOnSix()), torch.zeros(4, 3, 6, 6)), exports=False))
    prune = next(check for check in checks if (check.check, check.space) == ("prune", "first"))
    assert (prune.outcome, prune.difference) == ("ok", None)
    assert "not comparable" in prune.detail
    assert prune.node is not None


def test_source_that_traces_to_other_spaces_is_found() -> None:
    graph = seed("vgg19", 4)
    wider = seed("vgg19", 5)
    assert first_difference(graph, seed("vgg19", 4)) == ""
    assert first_difference(wider, graph) == "space features.0: width 5 instead of 4"
    assert first_difference(seed("resnet20", 4), graph).startswith(
        "other channel spaces: without ['features.0'"
    )


def test_zeroing_is_what_zero_weights_do() -> None:
    """Against an independent construction: the consumers' columns set to zero."""
    graph = seed("resnet20", 4).to(torch.float64)
    randomise_norms(graph, 0)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    twin = copy.deepcopy(graph)
    with torch.no_grad():
        twin.get_submodule("layer1.0.conv2").weight[:, 1] = 0
        twin.get_submodule("layer1.1.conv2").weight[:, [0, 2]] = 0
    removed = {"layer1.0.conv1": frozenset({1}), "layer1.1.conv1": frozenset({0, 2})}
    for training in (False, True):
        found = run_deterministic(zeroed(graph, removed), ((images,), {}), training=training, seed=0)
        wanted = run_deterministic(twin, ((images,), {}), training=training, seed=0)
        plain = run_deterministic(graph, ((images,), {}), training=training, seed=0)
        assert relative_difference(found, wanted) < 1e-13
        assert relative_difference(found, plain) > 1e-3


def test_differences() -> None:
    ones = torch.ones(2, 2, dtype=torch.float64)
    assert relative_difference([ones], [ones]) == 0
    assert relative_difference([ones * 1.5], [ones]) == 0.5
    assert relative_difference([ones[:1]], [ones]) == float("inf")
    assert not relative_difference([ones * float("nan")], [ones]) <= TOLERANCE


def test_checks_are_plain_data() -> None:
    check = Check("split", "refused", "conv", detail="channel of a model output", node="conv")
    assert check.to_json() == {
        "check": "split",
        "outcome": "refused",
        "space": "conv",
        "groups": 0,
        "difference": None,
        "detail": "channel of a model output",
        "code": "",
        "suggestion": "",
        "node": "conv",
        "source": None,
    }
