"""From ties to groups: closes the coupling so that every group is a legal unit of every tensor.

A group can be removed from a tensor, or doubled in it, only if it fills whole slices along one dimension.
Where a view leaves labels that vary along several dimensions at once (a channel shuffle's ``(groups, channels
/ groups)``), the channels of the same inner index are tied, until every group is such a set of slices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from morphir.analysis.execution import Execution
from morphir.analysis.labels import NO_LABEL, Layer, Restriction, Tie, compact, components, label_dims


@dataclass(frozen=True)
class Coupling:
    """The coupling components.

    Attributes:
        roots: Label to its component's smallest label.
        restrictions: Root to the strongest restriction on its component.
        ties: What ties the labels: the rules' ties, and those that make every group a set of slices.
        plural: Node name, and roots of components of which more than one has to stay for its sake.
    """

    roots: NDArray[np.int64]
    restrictions: dict[int, Restriction]
    ties: tuple[Tie, ...] = ()
    plural: tuple[tuple[str, NDArray[np.int64]], ...] = ()

    def of(self, labels: torch.Tensor) -> NDArray[np.int64]:
        """Returns the roots of a label tensor; -1 stays -1."""
        flat = labels.numpy()
        return np.where(flat == NO_LABEL, NO_LABEL, self.roots[flat])

    def axis(self, execution: Execution, key: str, axis: int) -> NDArray[np.int64]:
        """Returns the roots along one axis of one tensor."""
        first = execution.axes.first[key, axis]
        return self.roots[first : first + execution.axes.extents[key, axis]]

    def vector(self, layer: Layer) -> tuple[int, NDArray[np.int64]] | None:
        """Returns the one dimension along which a layer's groups lie, and the roots along it.

        A single group may fill several dimensions; then it is the one along which a kernel's rows lie side by
        side, or else the innermost, where ties leave the channels.
        """
        dims = label_dims(layer)
        if not dims:
            return None
        labels = compact(layer)
        small = self.of(labels)
        if not small.size:
            return None
        found: list[tuple[int, int, NDArray[np.int64]]] = []
        for dim in dims:
            first = np.moveaxis(small, dim, 0).reshape(small.shape[dim], -1)
            if (first == first[:, :1]).all():
                neighbours = int((np.diff(labels.numpy(), axis=dim) == 1).sum()) if len(dims) > 1 else 0
                found.append((neighbours, dim, first[:, 0]))
        if not found:
            return None
        _, dim, roots = max(found, key=lambda item: item[:2])
        return dim, roots


def couple(execution: Execution) -> Coupling:
    """Returns the components of all ties, closed under "a group is a set of slices"."""
    coupling = Coupling(components(execution.axes.total, execution.facts.ties), {})
    ties = list(execution.facts.ties)
    # In program order: a tie that one view demands may settle the views that come after it. More ties never
    # scatter a layer again, so one pass is enough.
    for node, layer in execution.scattered:
        if (tie := _missing_tie(coupling, layer, node)) is not None:
            ties.append(tie)
            coupling = Coupling(_joined(coupling.roots, tie), {})
    strongest = _strongest(coupling.roots, execution.facts.restrictions)
    return Coupling(coupling.roots, strongest, tuple(ties), _plural(coupling, execution))


def _plural(coupling: Coupling, execution: Execution) -> tuple[tuple[str, NDArray[np.int64]], ...]:
    found = [(node, coupling.roots[labels[labels != NO_LABEL]]) for node, labels in execution.facts.plural]
    found += [(node, coupling.of(compact(layer))) for node, layer in execution.scattered]
    distinct: dict[bytes, tuple[str, NDArray[np.int64]]] = {}
    for node, roots in found:
        kept = np.unique(roots[roots != NO_LABEL])
        distinct.setdefault(kept.tobytes(), (node, kept))
    return tuple(distinct.values())


def _joined(roots: NDArray[np.int64], tie: Tie) -> NDArray[np.int64]:
    """Returns the roots once the components that ``tie`` ties are one."""
    held, ends = np.unique(np.concatenate([roots[tie.left], roots[tie.right]]), return_inverse=True)
    left, right = np.split(ends, 2)
    renamed = np.arange(roots.size)
    renamed[held] = held[components(held.size, [replace(tie, left=left, right=right)])]
    return renamed[roots]


def _missing_tie(coupling: Coupling, layer: Layer, node: str) -> Tie | None:
    if not layer.numel() or coupling.vector(layer) is not None:
        return None
    last = label_dims(layer)[-1]
    small = compact(layer)
    inner = small.movedim(last, -1).reshape(-1, small.shape[last])
    first = inner[:1].expand_as(inner).reshape(-1)
    left, right = coupling.of(inner.reshape(-1)), coupling.of(first)
    keep = (left != right) & (left != NO_LABEL) & (right != NO_LABEL)
    tied = Tie(inner.reshape(-1).numpy()[keep], first.numpy()[keep], "same-inner-index", node)
    return tied if keep.any() else None


def _strongest(roots: NDArray[np.int64], restrictions: list[Restriction]) -> dict[int, Restriction]:
    found: dict[int, Restriction] = {}
    for kind in ("frozen", "prune-only"):
        for restriction in restrictions:
            if restriction.kind == kind:
                for root in np.unique(roots[restriction.labels]).tolist():
                    found.setdefault(root, restriction)
    return found
