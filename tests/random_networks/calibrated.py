"""A calibration really applies one morphism to each sample: against networks that the passes rewrote."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from morphir.errors import RewriteError
from morphir.ir.graph import Graph
from morphir.morphisms.base import Morphism
from morphir.runtime.learning.calibration import CalibrationError
from morphir.runtime.learning.learner import Learner
from passes.transform import transform
from random_networks.influence import Subject

_ROUNDS = 3
_TOLERANCE = 1e-9


def wrong_sample(subject: Subject, seed: int) -> str | None:
    """Says in words which sample's loss is not that of the rewritten network; empty where all are.

    Returns:
        None where the learner says that it has nothing to apply, or cannot.
    """
    samples = _samples(subject)
    if samples is None:
        return None

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        del targets
        generator = torch.Generator().manual_seed(seed)
        flat = torch.cat([value.reshape(samples, -1) for value in _floating(outputs)], 1)
        return torch.tanh(flat @ torch.randn(flat.shape[1], generator=generator, dtype=flat.dtype)).square()

    targets = torch.zeros(samples)
    try:
        learner = Learner(subject.graph, loss, init_scale=0.5, seed=seed)
        learner.step(subject.inputs, targets)
        morphisms = _morphisms(learner)
        for _ in range(_ROUNDS):
            columns, found = _applied(learner, subject.inputs, targets)
            for sample, column in enumerate(columns):
                morphism = morphisms[column]
                try:
                    wanted = _change(subject.graph, morphism, subject.inputs, loss)[sample]
                except RewriteError:
                    # A prune that would leave too little can be scored, but not applied.
                    continue
                if abs(float(wanted - found[sample])) > _TOLERANCE:
                    return f"{morphism}: sample {sample} changes by {found[sample]:.6g}, not {wanted:.6g}"
    except CalibrationError:
        return None
    return ""


def _samples(subject: Subject) -> int | None:
    """Returns the extent that inputs and outputs begin with; None where they do not share one."""
    values = [*_floating(subject.inputs), *_floating(subject.values["output"])]
    extents = {value.shape[0] if value.dim() else 0 for value in values}
    return extents.pop() if len(extents) == 1 else None


def _floating(values: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor) and x.is_floating_point()]


def _morphisms(learner: Learner) -> list[Morphism]:
    """The morphism of every column."""
    legal: dict[Any, Morphism] = {}
    for score in learner.scores():
        one: Any = score.morphism
        legal[one.kind, one.space, one.index] = one
    kinds = [
        (p, kind) for p in learner.lowered.spaces for kind in ("prune", "split")[: p.morphisms // p.width]
    ]
    return [legal.get((kind, p.name, index)) for p, kind in kinds for index in range(p.width)]  # pyright: ignore[reportReturnType]


def _applied(learner: Learner, inputs: Any, targets: Tensor) -> tuple[list[int], Tensor]:
    """Returns each sample's column, and what the calibration found that its morphism changes."""
    seen: list[tuple[list[int], Tensor]] = []
    add = learner._calibration.add

    def noting(drawn: Any, changes: Tensor, *others: Any) -> None:
        seen.append((drawn.columns.tolist(), changes))
        add(drawn, changes, *others)

    learner._calibration.add = noting  # pyright: ignore[reportAttributeAccessIssue]
    learner.calibrate(inputs, targets)
    learner._calibration.add = add
    return seen[0] if seen else ([], torch.zeros(0))


def _change(graph: Graph, morphism: Morphism, inputs: Any, loss: Any) -> Tensor:
    changed = copy.deepcopy(graph)
    transform(changed, [morphism])
    with torch.no_grad():
        before, after = (
            loss(network.eval()(*pytree.tree_map(torch.clone, inputs)), torch.zeros(0))
            for network in (graph, changed)
        )
    return after - before
