"""One morphism really applied to each sample: the true change of its loss, and q.

A split's children are two sets of values, at y + delta and at y - delta, which meet at the edges: a consumer
reads their mean, since it has half of its kernel for each. A prune's channels are 0 at the edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from morphir.runtime.learning.calibration import Drawn
from morphir.runtime.learning.estimate import changes_of_splits, delta_of
from morphir.runtime.learning.lowering import EdgeProgram, Lowered, ProducerProgram, SpaceProgram, part_of
from morphir.runtime.learning.model_pass import Pass
from morphir.runtime.learning.paired import Joins, Moves, Values
from morphir.runtime.learning.projection import Projection, edge_values, estimate_prunes, project

Thetas = Mapping[str, torch.Tensor]
"""Producer parameter to theta."""


def project_applied(space: SpaceProgram, run: Pass, thetas: Thetas, drawn: Drawn) -> Projection | None:
    """Returns q and q~ of each sample's morphism, ``[S]``; 0 where it is of another space.

    Args:
        space: A space, whose gradients are there.
        run: The pass.
        thetas: Of the space; empty where it has no splits.
        drawn: Each sample's morphism.

    Returns:
        None where the loss does not depend on the space.
    """
    edges = edge_values(space, run)
    if all(edge is None for edge in edges):
        return None
    sampled = run.sampled is not None
    own = list(drawn.of(space))
    found = [estimate_prunes(edges, run.samples, sampled=sampled)]
    if space.split is not None:
        doubled = changes_of_splits(space.split, thetas, edges, run)
        found.append(project(doubled, 0.5, edges, run.samples, sampled=sampled))
    pairs = list(zip(own, found, strict=False))
    q = sum((mine * values.q).sum(1) for mine, values in pairs)
    tilde = [(mine * values.sampled).sum(1) for mine, values in pairs if values.sampled is not None]
    assert isinstance(q, torch.Tensor)
    return Projection(q, sum(tilde[1:], start=tilde[0]) if tilde else None)


def rewritten(lowered: Lowered, thetas: Mapping[str, Thetas], drawn: Drawn) -> Callable[..., Any]:
    """Returns the program in which each sample has its morphism applied.

    Args:
        lowered: The lowered graph; what is computed from parameters is that of its last run.
        thetas: By space.
        drawn: Each sample's morphism.
    """
    moves: dict[int, list[_Move]] = {}
    masks: dict[int, list[_Mask]] = {slot: [] for slot in lowered.taps}
    for space in lowered.spaces:
        prunes, splits = drawn.of(space)
        for edge in space.edges:
            for slot in edge.taps:
                masks[slot].append(_Mask(edge, prunes))
        for producer in () if space.split is None or not space.split.is_located else space.split.producers:
            moves.setdefault(producer.y, []).append(
                _Move(producer, thetas[space.name][producer.parameter], splits)
            )
    moving: Moves = {slot: partial(_moved, slot, own) for slot, own in moves.items()}
    joining: Joins = {slot: partial(_masked, own) for slot, own in masks.items()}
    return lambda *inputs: lowered.paired(inputs, moving, joining)


@dataclass(frozen=True)
class _Move:
    """delta of the samples that have a split of this producer."""

    producer: ProducerProgram
    theta: torch.Tensor
    splits: torch.Tensor

    def __call__(self, y: torch.Tensor, values: Values) -> torch.Tensor:
        producer = self.producer
        assert producer.groups is not None
        assert producer.samples is not None
        delta = delta_of(producer, self.theta, values.__getitem__)
        delta = delta if producer.samples == 0 else delta.movedim(producer.samples, 0)
        own = delta * producer.groups.spread(self.splits.to(delta.dtype), delta)
        return _whole(partial(part_of, part=producer.part, samples=producer.samples), y, own)


@dataclass(frozen=True)
class _Mask:
    """The channels of an edge that are pruned."""

    edge: EdgeProgram
    prunes: torch.Tensor

    def __call__(self, a: torch.Tensor) -> torch.Tensor:
        own = self.edge.read(a)
        return _whole(self.edge.read, a, own * self.edge.groups.spread(self.prunes.to(own.dtype), own))


def _moved(slot: int, moves: Sequence[_Move], sign: float, values: Values) -> torch.Tensor:
    y = values[slot]
    return y + sign * sum(move(y, values) for move in moves)


def _masked(masks: Sequence[_Mask], a: torch.Tensor) -> torch.Tensor:
    for mask in masks:
        a = a - mask(a)
    return a


def _whole(
    read: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor, part: torch.Tensor
) -> torch.Tensor:
    """Lays a part out in a tensor of zeros; reading is linear, and this is its adjoint."""
    with torch.enable_grad():
        base = torch.zeros_like(like).requires_grad_()
        taken = read(base)
    return torch.autograd.grad(taken, base, part.to(taken.dtype))[0]
