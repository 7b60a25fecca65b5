"""Parts of a model whose names a graph uses itself are refused by name; any other name is welcome."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from morphir.analysis.tracing import trace
from morphir.errors import TraceError
from morphir.morphisms.split import Split
from passes.transform import transform


class Named(nn.Module):
    """A convolution under any name, and a parameter under another."""

    def __init__(self, convolution: str, parameter: str = "scale") -> None:
        super().__init__()
        self.names = convolution, parameter
        self.add_module(convolution, nn.Conv2d(3, 4, 1))
        self.register_parameter(parameter, nn.Parameter(torch.ones(4)))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        convolution, parameter = (getattr(self, name) for name in self.names)
        return self.head(convolution(x).mean((2, 3)) * parameter)


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


TAKEN = ("code", "graph", "inputs", "history", "module_types", "_channels", "_graph", "meta", "attach")


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_graphs_use_is_refused(name: str) -> None:
    with pytest.raises(TraceError, match=f"Named has a part named '{name}'.*\n.*hint: rename it"):
        trace(Named("conv", name), torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize("name", ("features", "data", "keys", "names_of", "blocks"))
def test_other_names_are_welcome(name: str) -> None:
    graph = trace(Named(name), torch.randn(2, 3, 4, 4))
    transform(copy.deepcopy(graph), [Split(name, 1)])
    assert f"{name}.weight" in graph.state_dict()


def test_a_wrapper_gives_every_name_back() -> None:
    class Coded(Named):
        def __init__(self) -> None:
            super().__init__("encoder", "history")

    graph = trace(Wrapped(Coded()), torch.randn(2, 3, 4, 4))
    transform(graph, [Split("model.encoder", 0)])
    assert graph.state_dict()["model.history"].shape == (5,)
