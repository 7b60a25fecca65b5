"""Labels: one integer for every index of every axis of every parameter and buffer, and their ties.

An activation carries *layers*: integer tensors of its own shape, stride 0 wherever the label does not vary.
Convolution gives its output the labels of its kernel's rows; the label of a channel *is* the label of the
kernel row that makes it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array, csgraph

from morphir.ir.channels import VerdictKind

Layer = torch.Tensor
Layers = tuple[Layer, ...]
NO_LABEL = -1
INPUT, CONSTANT = "input:", "constant:"
"""How the keys of what is no parameter or buffer begin; no ``state_dict`` key has this form."""


@dataclass(frozen=True)
class Tie:
    """Pairs of labels that must be rewritten together, and the node that demands it."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    code: str
    node: str


@dataclass(frozen=True)
class Restriction:
    """Labels that must not be split, or not be touched at all, and why."""

    labels: NDArray[np.int64]
    kind: VerdictKind
    code: str
    reason: str
    node: str


@dataclass(frozen=True)
class LabelledValue:
    """One tensor of the labelled run."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layers: Layers


Labelled = Mapping[str, Sequence[LabelledValue]]
"""Node name to the tensors that it yields."""


@dataclass
class AxisLabels:
    """Allots ``extent`` consecutive labels to every axis of every parameter, buffer and input.

    Constants that the program lays out along a dimension, by padding or expanding, get labels as it runs.

    Attributes:
        first: (tensor key, axis) to its first label.
        extents: (tensor key, axis) to its number of labels.
        total: Number of labels.
        order: Every (tensor key, axis), in the order of their labels.
    """

    first: dict[tuple[str, int], int]
    extents: dict[tuple[str, int], int]
    total: int
    order: list[tuple[str, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.order = list(self.first)

    @staticmethod
    def allot(shapes: Mapping[str, tuple[int, ...]]) -> AxisLabels:
        """Numbers the axes of all tensors."""
        first: dict[tuple[str, int], int] = {}
        extents: dict[tuple[str, int], int] = {}
        total = 0
        for key, shape in shapes.items():
            for axis, extent in enumerate(shape):
                first[key, axis], extents[key, axis] = total, extent
                total += extent
        return AxisLabels(first, extents, total)

    def extend(self, node: str, extent: int) -> torch.Tensor:
        """Allots labels to constants that ``node`` lays out, and returns them."""
        key = (f"{CONSTANT}{node}:{self.total}", 0)
        self.first[key], self.extents[key] = self.total, extent
        self.order.append(key)
        self.total += extent
        return torch.arange(self.first[key], self.total)

    def owner(self, label: int) -> tuple[str, int]:
        """Returns the (tensor key, axis) that a label belongs to."""
        return self.order[bisect_right(self.order, label, key=self.first.__getitem__) - 1]

    def layers(self, key: str, shape: tuple[int, ...], axes: Iterable[int]) -> Layers:
        """Returns one layer for each of ``axes`` of the tensor ``key``."""
        return tuple(
            spread(torch.arange(self.first[key, axis], self.first[key, axis] + shape[axis]), axis, shape)
            for axis in axes
        )


@dataclass
class Facts:
    """What the rules found out while the program ran.

    Attributes:
        ties: Labels that go together.
        restrictions: Labels that must not be split, or not be touched.
        plural: Node name and labels of channels that it takes for something else once one group is left.
    """

    ties: list[Tie] = field(default_factory=list[Tie])
    restrictions: list[Restriction] = field(default_factory=list[Restriction])
    plural: list[tuple[str, NDArray[np.int64]]] = field(default_factory=list["tuple[str, NDArray[np.int64]]"])

    def tie(self, left: torch.Tensor, right: torch.Tensor, code: str, node: str) -> None:
        """Ties two label tensors of one shape position by position."""
        a, b = (labels.reshape(-1).numpy() for labels in _without_repeats(left, right))
        keep = (a != b) & (a != NO_LABEL) & (b != NO_LABEL)
        if keep.any():
            first, second = _distinct_pairs(a[keep], b[keep])
            self.ties.append(Tie(first, second, code, node))

    def keep_several(self, vector: torch.Tensor, node: str) -> None:
        """Notes that a rewrite has to leave two groups in ``vector``, of all that are there.

        A convolution in groups of one channel is depthwise; a shuffle of ``[groups, 1]`` is none.
        """
        self.plural.append((node, distinct(vector.reshape(-1).numpy())))

    def restrict(self, layers: Iterable[Layer], kind: VerdictKind, code: str, reason: str, node: str) -> None:
        """Restricts every label in ``layers``."""
        for layer in layers:
            labels = distinct(compact(layer).reshape(-1).numpy())
            labels = labels[labels != NO_LABEL]
            if labels.size:
                self.restrictions.append(Restriction(labels, kind, code, reason, node))


def distinct(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the different numbers, sorted; labels mostly are that already."""
    return numbers if _ascend(numbers) else np.unique(numbers)


def _distinct_pairs(
    left: NDArray[np.int64], right: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the different pairs of two vectors, sorted."""
    if _ascend(left):
        return left, right
    span = int(right.max()) + 1
    return np.divmod(distinct(left * span + right), span)


def _ascend(numbers: NDArray[np.int64]) -> bool:
    return bool((numbers[1:] > numbers[:-1]).all())


def spread(vector: torch.Tensor, dim: int, shape: tuple[int, ...]) -> Layer:
    """Lays a label vector along ``dim``; stride 0 elsewhere, and non-zero there even at extent 1."""
    strides = [0] * len(shape)
    strides[dim] = 1
    return vector.contiguous().as_strided(shape, strides)


def vector_along(layer: Layer, dim: int) -> torch.Tensor:
    """Returns the labels along ``dim`` at the first position of all other dimensions."""
    if 0 in (*layer.shape[:dim], *layer.shape[dim + 1 :]):
        raise IndexError(f"a tensor of shape {tuple(layer.shape)} has no position to read labels at")
    return layer.as_strided((layer.shape[dim],), (layer.stride(dim),))


def label_dims(layer: Layer) -> tuple[int, ...]:
    """Returns the dimensions along which a layer's labels are laid out."""
    return tuple(dim for dim, stride in enumerate(layer.stride()) if stride)


def compact(layer: Layer) -> torch.Tensor:
    """Returns the layer with extent 1 wherever it does not vary."""
    dims = label_dims(layer)
    return layer[tuple(slice(None) if dim in dims else slice(0, 1) for dim in range(layer.dim()))]


def normalise(layer: Layer, *, copied: bool) -> Layer:
    """Makes stride 0 mean "does not vary" again after an operator moved the labels.

    Args:
        layer: The moved labels.
        copied: Whether the operator wrote them anew; a fresh copy's strides say nothing about extents of 1.
    """
    strides, small = list(layer.stride()), compact(layer)
    for dim, extent in enumerate(layer.shape):
        if extent > 1 and strides[dim]:
            first = small.narrow(dim, 0, 1)
            # The second position tells most that vary; only the others are compared as a whole.
            if torch.equal(first, small.narrow(dim, 1, 1)) and bool((small == first).all()):
                strides[dim], small = 0, first
    single = [dim for dim, extent in enumerate(layer.shape) if extent == 1 and strides[dim]]
    varies = any(stride for stride, extent in zip(strides, layer.shape, strict=True) if extent > 1)
    # Views give dimensions of extent 1 arbitrary strides; only a lone channel can lie along one of them.
    if varies or copied or len(single) > 1:
        for dim in single:
            strides[dim] = 0
    return layer.as_strided(layer.shape, strides, layer.storage_offset())


def _without_repeats(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Takes one position along every dimension along which neither of two tensors of a shape varies."""
    if left.shape != right.shape:
        return left, right
    dims = {*label_dims(left), *label_dims(right)}
    place = tuple(slice(None) if dim in dims else slice(0, 1) for dim in range(left.dim()))
    return left[place], right[place]


def components(total: int, ties: Iterable[Tie]) -> NDArray[np.int64]:
    """Returns, for every label, the smallest label that it is tied to: the coupling components."""
    ties = list(ties)
    left = np.concatenate([tie.left for tie in ties]) if ties else np.empty(0, np.int64)
    right = np.concatenate([tie.right for tie in ties]) if ties else np.empty(0, np.int64)
    # networkx takes seconds for the millions of labels that a large network has.
    adjacency = coo_array((np.ones(left.size, np.bool_), (left, right)), shape=(total, total))
    found = csgraph.connected_components(adjacency, directed=False)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    count, component = cast("tuple[int, NDArray[np.int64]]", found)
    smallest = np.empty(count, np.int64)
    smallest[component[::-1]] = np.arange(total)[::-1]  # of several labels, the last that is assigned stays
    return smallest[component]
