"""What a rule sees, what it answers, and the table that rules register in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch.utils import _pytree as pytree

from morphir.analysis.labels import AxisLabels, Facts, Layer, Layers, label_dims, spread, vector_along

Origin = Literal["parameter", "computed", "activation"]


@dataclass(frozen=True)
class MixingUse:
    """One use of a kernel by a mixing operator.

    Attributes:
        node: Name of the graph node.
        parameter: ``state_dict`` key of the kernel.
        in_axis: The kernel's axis of input channels.
        out_axis: The kernel's axis of output channels.
    """

    node: str
    parameter: str
    in_axis: int
    out_axis: int


@dataclass(frozen=True)
class Operation:
    """One ATen call, with access to the labels of its tensors.

    Attributes:
        func: The operator overload.
        args: Positional arguments.
        kwargs: Keyword arguments.
        result: What it returned.
        node: Name of the graph node that runs.
        layers_of: Tensor to its label layers.
        origin_of: Tensor to where its value comes from.
        literal_of: Tensor to its values, for an index that the program holds as a list or buffer; else None.
        axes: Which label belongs to which axis.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    node: str
    layers_of: Callable[[torch.Tensor], Layers]
    origin_of: Callable[[torch.Tensor], Origin]
    literal_of: Callable[[torch.Tensor], torch.Tensor | None]
    axes: AxisLabels

    @cached_property
    def name(self) -> str:
        """The operator's name without its overload, as ``convolution``."""
        return cast(str, self.func._schema.name).split("::")[1]

    @cached_property
    def tensor_inputs(self) -> list[torch.Tensor]:
        """Every tensor among the arguments, lists included."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    @cached_property
    def tensor_outputs(self) -> list[torch.Tensor]:
        """Every tensor in the result."""
        return [leaf for leaf in pytree.tree_leaves(self.result) if isinstance(leaf, torch.Tensor)]

    def argument(self, name: str, default: Any = None) -> Any:
        """Returns an argument by its schema name."""
        if name in self.kwargs:
            return self.kwargs[name]
        for position, argument in enumerate(self.func._schema.arguments):
            if argument.name == name and position < len(self.args):
                return self.args[position]
        return default


@dataclass(frozen=True)
class Outcome:
    """What a rule answers: each output with its layers, and the kernels used."""

    outputs: Sequence[tuple[torch.Tensor, Layers]]
    mixing: Sequence[MixingUse] = field(default=())


Rule = Callable[[Operation, Facts], Outcome]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for operators by name."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def channel_vector(
    layers: Sequence[Layer], dim: int, facts: Facts, node: str, *, code: str = "same-channel"
) -> torch.Tensor | None:
    """Returns the labels along ``dim``, tying what varies along other dimensions to it.

    Layers that do not vary along ``dim`` are left out; several that do are tied together.
    """
    vectors: list[torch.Tensor] = []
    for layer in layers:
        dims = label_dims(layer)
        if dim not in dims:
            continue
        if len(dims) == 1:
            vectors.append(vector_along(layer, dim))
            continue
        others = tuple(d for d in dims if d != dim)
        moved = layer.permute(dim, *others, *(d for d in range(layer.dim()) if d not in dims))
        moved = moved[(..., *([0] * (layer.dim() - len(dims))))].reshape(layer.shape[dim], -1)
        facts.tie(moved, moved[:, :1].expand_as(moved), code, node)
        vectors.append(moved[:, 0])
    for vector in vectors[1:]:
        facts.tie(vectors[0], vector, "same-position", node)
    return vectors[0] if vectors else None


def along(vector: torch.Tensor | None, dim: int, shape: Sequence[int]) -> Layers:
    """Returns the layer that lays ``vector`` along ``dim``; none for no vector."""
    return () if vector is None else (spread(vector, dim, tuple(shape)),)
