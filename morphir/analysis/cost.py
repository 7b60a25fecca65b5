"""Exact parameters and multiply-accumulates (MACs) of a graph, and of any rewrite of its channels.

Both are sums of products of extents: a parameter has the product of its axes' extents in entries, a
convolution or matrix product the product of its iteration space's extents in MACs. A rewrite changes an
extent by the number of positions that it adds or takes away, so with n_d(g) positions of group g along
dimension d of extent e_d::

    change of one split (prune) = prod_d (e_d + n_d(g)) - prod_d e_d        (prune: e_d - n_d(g))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from morphir.errors import MorphirError
from morphir.ir.channels import Value, ValueLayout
from morphir.ir.graph import Graph, require_graph
from morphir.ir.index_map import Copies

MorphismKind = Literal["split", "prune"]
ADDED: Mapping[MorphismKind, int] = {"split": 1, "prune": -1}
"""Kind of morphism to how many groups it adds; a test holds it to what the morphisms declare."""
_Changes = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Cost:
    """A resource count, or a change of one.

    Attributes:
        parameters: Entries of all parameters, each shared one counted once; no buffers.
        macs: Multiply-accumulates of convolutions and matrix products for one sample.
    """

    parameters: int
    macs: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.macs + other.macs)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.parameters - other.parameters, self.macs - other.macs)

    def __neg__(self) -> Cost:
        return Cost(-self.parameters, -self.macs)

    def __str__(self) -> str:
        return f"{self.parameters:,} parameters, {self.macs:,} MACs"


@dataclass(frozen=True)
class _Term:
    """A product of extents.

    Attributes:
        shape: The extents.
        counts: Space name to {dimension: for every group, how many positions along it the group has}.
    """

    shape: tuple[int, ...]
    counts: Mapping[str, Mapping[int, NDArray[np.int64]]]

    @staticmethod
    def of(value: Value, widths: Mapping[str, int]) -> _Term:
        """Counts each group's positions along each dimension."""
        counts: dict[str, dict[int, NDArray[np.int64]]] = {}
        for layout in value.layouts:
            found = np.bincount(layout.groups.held, minlength=widths[layout.space])
            along = counts.setdefault(layout.space, {})
            # Both operands of a product may know what lies along the dimension that they share.
            along[layout.dim] = np.maximum(along.get(layout.dim, 0), found.astype(np.int64))
        return _Term(value.shape, counts)

    @property
    def size(self) -> int:
        return prod(self.shape)

    def after_each(self, space: str, step: int) -> NDArray[np.int64]:
        """Returns the product after one split (step 1) or prune (step -1) of each group of ``space``."""
        along = self.counts[space]
        fixed = prod(extent for dim, extent in enumerate(self.shape) if dim not in along)
        result = np.full(len(next(iter(along.values()))), fixed, dtype=np.int64)
        for dim, counts in along.items():
            result *= self.shape[dim] + step * counts
        return result

    def after(self, copies: Mapping[str, NDArray[np.int64]]) -> int:
        """Returns the product after a whole plan."""
        extents = list(self.shape)
        for space in self.counts.keys() & copies.keys():
            for dim, counts in self.counts[space].items():
                extents[dim] += int(counts @ (copies[space] - 1))
        return prod(extents)


class _CostModel:
    """The terms of one channel layer, and what splits and prunes of each space change."""

    def __init__(self, graph: Graph) -> None:
        self.layer = graph.channels
        widths = {name: space.width for name, space in self.layer.spaces.items()}
        self.batch = graph.inputs.batch_size or 1
        self.parameters = [_Term.of(value, widths) for value in _parameter_values(graph)]
        self.products = [_Term.of(product.iteration, widths) for product in self.layer.products]
        self.changes: dict[tuple[MorphismKind, str], _Changes] = {}

    def total(self) -> Cost:
        return Cost(_sizes(self.parameters), _sizes(self.products) // self.batch)

    def total_after(self, copies: Mapping[str, NDArray[np.int64]]) -> Cost:
        parameters = sum(term.after(copies) for term in self.parameters)
        return Cost(parameters, sum(term.after(copies) for term in self.products) // self.batch)

    def of_each(self, kind: MorphismKind, space: str) -> _Changes:
        """Returns the change of parameters and of MACs for every group of a space."""
        if (kind, space) not in self.changes:
            parameters = self._changes(self.parameters, kind, space)
            before = _sizes(self.products)
            after = before + self._changes(self.products, kind, space)
            macs = after // self.batch - before // self.batch
            self.changes[kind, space] = parameters, macs
        return self.changes[kind, space]

    def _changes(self, terms: Iterable[_Term], kind: MorphismKind, space: str) -> NDArray[np.int64]:
        total = np.zeros(self.layer.spaces[space].width, dtype=np.int64)
        for term in terms:
            if space in term.counts:
                total += term.after_each(space, ADDED[kind]) - term.size
        return total


def _sizes(terms: Iterable[_Term]) -> int:
    return sum(term.size for term in terms)


def _parameter_values(graph: Graph) -> list[Value]:
    """Returns every parameter with the channels along its axes."""
    layouts: dict[str, list[ValueLayout]] = {}
    for space in graph.spaces.values():
        for binding in space.bindings:
            layouts.setdefault(binding.parameter, []).append(
                ValueLayout(space.name, binding.axis, binding.groups)
            )
    return [
        Value(tuple(parameter.shape), parameter.dtype, tuple(layouts.get(key, ())))
        for key, parameter in graph.named_parameters()
    ]


# A channel layer is replaced as a whole when its graph changes, so its terms never go stale.
_MODELS: WeakKeyDictionary[Graph, _CostModel] = WeakKeyDictionary()


def _model(graph: Graph) -> _CostModel:
    model = _MODELS.get(graph)
    if model is None or model.layer is not graph.channels:
        model = _MODELS[graph] = _CostModel(graph)
    return model


def cost(graph: Graph) -> Cost:
    """Returns a graph's parameters, and its MACs for one sample of the example inputs' size.

    Raises:
        MorphirError: for anything but an analysed graph.
    """
    require_graph(graph)
    return _model(graph).total()


def delta_cost(graph: Graph, kind: MorphismKind, space: str, index: int) -> Cost:
    """Returns the exact change of cost of splitting, or pruning, one group on its own.

    Args:
        graph: An analysed graph.
        kind: ``"split"`` or ``"prune"``.
        space: Name of the space.
        index: Index of the group in it.

    Raises:
        MorphirError: if there is no such space or group.
    """
    graph.space(space).verdict(index)
    parameters, macs = _model(graph).of_each(kind, space)
    return Cost(int(parameters[index]), int(macs[index]))


def delta_cost_of_copies(graph: Graph, copies: Copies) -> Cost:
    """Returns the exact change of cost of a whole plan.

    Args:
        graph: An analysed graph.
        copies: Space name to the number of copies of each of its groups (0: pruned, 1: kept, 2: split).

    Raises:
        MorphirError: if there is no such space, or the number of its groups is another.
    """
    for name, counts in copies.items():
        if len(counts) != (width := graph.space(name).width):
            raise MorphirError(f"space {name!r} has {width} channel groups, the plan names {len(counts)}")
    arrays = {name: np.asarray(counts, dtype=np.int64) for name, counts in copies.items()}
    return _model(graph).total_after(arrays) - cost(graph)
