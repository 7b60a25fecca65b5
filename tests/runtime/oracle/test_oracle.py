"""The oracle passes networks that are right, and catches rewrites that are not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from morphir.analysis.spaces import trace
from morphir.ir.graph import Graph
from morphir.morphisms.base import Child
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.oracle import oracle
from morphir.runtime.oracle.oracle import TOLERANCE, Check, check_graph, relative_difference, summary
from morphir.runtime.oracle.subjects import randomise_norms
from morphir.runtime.oracle.zeroing import run_deterministic, zeroed
from morphir.seeds import resolve


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


class Normed(nn.Module):
    """A layer norm mixes the channels: they can be pruned, and not compared."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.first(values)))


@pytest.mark.parametrize(("spec", "width"), [("vgg19", 4), ("mobilenetv1", 4), ("resnet20", 4)])
def test_seeds_pass(spec: str, width: int) -> None:
    graph = seed(spec, width)
    checks = list(check_graph(graph, max_spaces=3))
    assert [check for check in checks if check.outcome == "failed"] == []
    compared = [check.difference for check in checks if check.difference is not None]
    assert compared and max(compared) < 1e-10
    assert [check.check for check in checks[-3:]] == ["plan", "export-pytorch", "export-onnx"]


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


def test_a_prune_of_the_wrong_channel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def neighbours(graph: Graph, morphisms: list[Prune]) -> object:
        return original(
            graph, [Prune(m.space, (m.index + 1) % graph.space(m.space).width) for m in morphisms]
        )

    original = oracle.transform
    monkeypatch.setattr(oracle, "transform", neighbours)
    checks = list(check_graph(seed("vgg19", 4), max_spaces=3, exports=False))
    assert {check.outcome for check in checks if check.check == "prune"} == {"failed", "refused"}


def test_random_layers_do_not_disturb() -> None:
    graph = trace(Dropping(), torch.zeros(4, 3, 6, 6))
    checks = list(check_graph(graph, exports=False))
    assert summary(checks) == {"ok": 3, "refused": 2, "failed": 0}


def test_channels_behind_a_mixing_norm_are_said_to_be_incomparable() -> None:
    checks = list(check_graph(trace(Normed(), torch.zeros(4, 3)), exports=False))
    found = {(check.check, check.space): check for check in checks}
    assert found["split", "first"].outcome == "refused"
    assert found["split", "first"].source is not None
    prune = found["prune", "first"]
    assert (prune.outcome, prune.difference) == ("ok", None)
    assert "not comparable" in prune.detail


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
        "node": "conv",
        "source": None,
    }
