"""The proof that every construct of the zoo goes through."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exporters.registry import EXPORTERS
from morphir.analysis.tracing import trace
from morphir.ir.channels import ChannelSpace, Verdict
from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.morphisms.plan import without_emptying
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.oracle.oracle import check_graph
from passes.transform import transform

IMAGE = (2, 3, 8, 8)
OUTPUT = "frozen:model-output"


class Net(nn.Module):
    """Submodules and tensors by name, and a forward that is a plain function of them."""

    def __init__(self, forward: Callable[..., object], parts: Mapping[str, object]) -> None:
        super().__init__()
        self.body = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


@pytest.fixture
def prove(tmp_path: Path) -> Callable[..., Graph]:
    """``prove(forward, expected, *shape, onnx=False, **parts)``, or a module in the place of ``forward``.

    ``expected`` says, for every space but those that are wholly the model's output, how many groups have
    which verdict: ``{"conv": "6 exact, 2 frozen:model-input"}``. Then the model has to pass the oracle
    without a failure, every verdict has to be what ``transform`` does, and the changed model is exported.
    """

    def run(
        forward: Callable[..., object],
        expected: Mapping[str, str],
        *shape: int,
        onnx: bool = False,
        **parts: object,
    ) -> Graph:
        model = forward if isinstance(forward, nn.Module) else Net(forward, parts)
        graph = trace(model.eval(), torch.randn(*(shape or IMAGE)))
        assert _summary(graph) == expected
        _check_oracle(graph)
        _check_verdicts(graph)
        for name in ("pytorch", "onnx") if onnx else ("pytorch",):
            changed = copy.deepcopy(graph)
            wanted = [morphism for space in graph.spaces.values() for morphism in _alternating(space)]
            transform(changed, without_emptying(graph, wanted))
            EXPORTERS[name].export(changed, tmp_path / f"network{EXPORTERS[name].suffix}")
        return graph

    return run


def _summary(graph: Graph) -> dict[str, str]:
    spaces = {name: _counts(space) for name, space in graph.spaces.items()}
    return {name: text for name, text in spaces.items() if text != f"{graph.spaces[name].width} {OUTPUT}"}


def _counts(space: ChannelSpace) -> str:
    words = [_word(verdict) for verdict in space.verdicts]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def _word(verdict: Verdict) -> str:
    return f"{verdict.kind}:{verdict.code}" if verdict.code else verdict.kind


def _check_oracle(graph: Graph) -> None:
    for check in check_graph(graph, exports=False):
        assert check.outcome != "failed", check
        if check.space is not None and _allowed(graph, graph.spaces[check.space], check.check):
            assert check.outcome == "ok", check


def _allowed(graph: Graph, space: ChannelSpace, kind: str) -> list[Morphism]:
    """Every split or prune of one group alone that the verdicts allow."""
    if kind == "split":
        return [Split(space.name, at) for at, verdict in enumerate(space.verdicts) if verdict.kind == "exact"]
    prunes = [Prune(space.name, at) for at, verdict in enumerate(space.verdicts) if verdict.kind != "frozen"]
    return [prune for prune in prunes if without_emptying(graph, [prune])]


def _check_verdicts(graph: Graph) -> None:
    """Every group alone: what its verdict allows, ``transform`` does."""
    for space in graph.spaces.values():
        for morphism in (*_allowed(graph, space, "split"), *_allowed(graph, space, "prune")):
            transform(copy.deepcopy(graph), [morphism])


def _alternating(space: ChannelSpace) -> list[Morphism]:
    """Splits the first exact group of a space and prunes the last."""
    exact = [index for index, verdict in enumerate(space.verdicts) if verdict.kind == "exact"]
    splits: list[Morphism] = [Split(space.name, index) for index in exact[:1]]
    return splits + [Prune(space.name, index) for index in exact[-1:] if len(exact) > 1]
