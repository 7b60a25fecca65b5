"""Each pass that MorphIR ships, followed by one that fails: nothing of it is left."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import pytest
import torch
from torch import nn, optim

import passes
from morphir.analysis.tracing import trace
from morphir.errors import RewriteError
from morphir.ir.graph import Graph
from morphir.ir.index_map import IndexMap
from morphir.ir.printer import print_graph
from morphir.ir.state import named_state
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from passes.base import Pass, PassResult
from passes.batch_norm import ReexpressBatchNorm
from passes.dead_code import EliminateDeadCode
from passes.manager import PassManager
from passes.morph_channels import PruneChannels, SplitChannels
from passes.rewriter import Rewriter

INPUTS = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
THETA = {"conv.weight": torch.full((3, 3, 3), 0.1)}
CHANGES: dict[str, Callable[[], Pass]] = {
    "split-channels": lambda: SplitChannels((Split("conv", 1, THETA),)),
    "prune-channels": lambda: PruneChannels((Prune("conv", 2),)),
    "eliminate-dead-code": lambda: EliminateDeadCode(),
    "reexpress-batch-norm": lambda: ReexpressBatchNorm([INPUTS], (IndexMap.of_copies("conv", (1, 2, 1)),)),
}


class Net(nn.Module):
    """Has something to do for each pass: a batch norm, and a convolution that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.unread, self.out = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).relu()
        self.unread(x)
        return self.out(x)


@dataclass(frozen=True)
class Failing(Pass):
    name: ClassVar[str] = "failing"

    def apply(self, rewriter: Rewriter) -> PassResult:
        raise RewriteError("on purpose")


@dataclass(frozen=True)
class Facts:
    """All that a pass may change: identities, and copies of the values."""

    tensors: dict[str, int]
    values: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    held: list[int]
    moments: dict[str, dict[str, Any]]
    program: object
    channels: object
    history: object
    text: str


def facts(graph: Graph, optimizer: optim.Optimizer) -> Facts:
    parameters = dict(graph.named_parameters())
    return Facts(
        {key: id(tensor) for key, tensor in named_state(graph).items()},
        {key: tensor.detach().clone() for key, tensor in graph.state_dict().items()},
        {key: p.grad.clone() for key, p in parameters.items() if p.grad is not None},
        [id(p) for group in optimizer.param_groups for p in group["params"]],
        {
            key: {name: (id(value), value.clone()) for name, value in optimizer.state[p].items()}
            for key, p in parameters.items()
        },
        graph.graph,
        graph.channels,
        graph.history,
        print_graph(graph),
    )


def check_same(before: Facts, after: Facts) -> None:
    for name in ("tensors", "held", "text"):
        assert getattr(before, name) == getattr(after, name), name
    for name in ("program", "channels", "history"):
        assert getattr(before, name) is getattr(after, name), name
    for name in ("values", "gradients"):
        old, new = getattr(before, name), getattr(after, name)
        assert old.keys() == new.keys()
        for key, value in old.items():
            assert torch.equal(value, new[key]), f"{name} of {key}"
    assert before.moments.keys() == after.moments.keys()
    for key, moments in before.moments.items():
        assert moments.keys() == after.moments[key].keys()
        for name, (identity, value) in moments.items():
            assert after.moments[key][name][0] == identity, f"{name} of {key}"
            assert torch.equal(after.moments[key][name][1], value), f"{name} of {key}"


def trained() -> tuple[Graph, optim.Optimizer]:
    """A graph under Adam after one step, with what moved the running statistics of its norm."""
    graph = trace(Net(), INPUTS)
    optimizer = optim.Adam(graph.parameters(), lr=1e-2)
    graph(INPUTS).square().mean().backward()
    for parameter in graph.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.grad is None else parameter.grad
    optimizer.step()
    return graph, optimizer


def test_every_shipped_pass_is_tried() -> None:
    for module in pkgutil.iter_modules(passes.__path__, "passes."):
        import_module(module.name)
    assert set(names_of(Pass)) == CHANGES.keys()


def names_of(kind: type[Pass]) -> Iterator[str]:
    """The names of the passes that derive from a class, those of the tests left out."""
    for own in kind.__subclasses__():
        if own.__module__.startswith("passes.") and "name" in vars(own):
            yield own.name
        yield from names_of(own)


@pytest.mark.parametrize("name", CHANGES)
def test_nothing_is_left_of_a_pass_whose_pipeline_fails(name: str) -> None:
    graph, optimizer = trained()
    before = facts(graph, optimizer)
    with pytest.raises(RewriteError, match="on purpose") as caught:
        PassManager((CHANGES[name](), Failing())).run(graph, optimizer)
    assert caught.value.__notes__ == [f"in pass failing, after {name}"]
    check_same(before, facts(graph, optimizer))
    # Without the failing pass it would have changed something.
    PassManager((CHANGES[name](),)).run(graph, optimizer)
    after = facts(graph, optimizer)
    assert (before.tensors, before.text) != (after.tensors, after.text)


@pytest.mark.parametrize("name", CHANGES)
def test_old_tensors_are_never_written_into(name: str) -> None:
    graph, optimizer = trained()
    held = named_state(graph)
    old = {key: tensor.detach().clone() for key, tensor in held.items()}
    PassManager((CHANGES[name](),)).run(graph, optimizer)
    for key, tensor in held.items():
        assert torch.equal(tensor, old[key]), key
