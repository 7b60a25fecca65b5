"""One morphism really applied to each sample: the true change of its loss, and q.

A split's children are two sets of values, at y + delta and at y - delta, which meet at the edges: a consumer
reads their mean, since it has half of its kernel for each. A prune's channels are 0 at the edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from morphir.runtime.learning.calibration import Drawn
from morphir.runtime.learning.estimate import changes_of_splits, delta_of
from morphir.runtime.learning.loss_check import Loss
from morphir.runtime.learning.model_pass import Forward, Pass, losses_of, run_backward
from morphir.runtime.learning.paired import Joins, Moves, Values
from morphir.runtime.learning.programs import EdgeProgram, Lowered, ProducerProgram, SpaceProgram, part_of
from morphir.runtime.learning.projection import Projection, edge_values, estimate_prunes, project

Thetas = Mapping[str, torch.Tensor]
"""Producer parameter to theta."""


def apply_to_samples(
    lowered: Lowered,
    forward: Forward,
    batch: tuple[Sequence[Any], Any],
    loss: Loss,
    thetas: Mapping[str, Thetas],
    drawn: Drawn,
    generator: torch.Generator | None,
    *,
    sample: bool,
) -> tuple[torch.Tensor, list[Projection]]:
    """Returns each sample's true change of the loss, ``[S]``, and q and q~ of its morphism.

    These are ``[S]`` in one of the projections, and 0 in the others. What the model's own random operators
    draw differs from pass to pass, and is noise.

    Args:
        lowered: The lowered graph.
        forward: Its forward pass.
        batch: The model's arguments in order, and the targets.
        loss: Returns one loss a sample.
        thetas: By space.
        drawn: Each sample's morphism.
        generator: Draws the Fisher's random signs.
        sample: Whether q~ is asked for.
    """
    inputs, targets = batch
    found: list[Projection] = []

    def work(space: SpaceProgram, run: Pass) -> None:
        found.extend(_projected(space, run, thetas.get(space.name, {}), drawn))

    run_backward(forward, lowered, targets, generator, work, sample=sample)
    before = forward.run.losses.samples
    assert before is not None
    return losses_of(_rewritten(lowered, thetas, drawn), lowered, inputs, targets, loss) - before, found


def _projected(space: SpaceProgram, run: Pass, thetas: Thetas, drawn: Drawn) -> Iterator[Projection]:
    """Yields q and q~ of the samples' prunes, and of their splits; nothing where no loss depends on them."""
    edges, sampled = edge_values(space, run), run.sampled is not None
    if not any(edges):
        return
    prunes, splits = drawn.of(space)
    yield _picked(estimate_prunes(edges, run.samples, sampled=sampled), prunes)
    if space.split is not None and splits is not None:
        doubled = changes_of_splits(space.split, thetas, edges, run)
        yield _picked(project(doubled, 0.5, edges, run.samples, sampled=sampled), splits)


def _picked(projection: Projection, own: torch.Tensor) -> Projection:
    sampled = projection.sampled
    return Projection((projection.q * own).sum(1), None if sampled is None else (sampled * own).sum(1))


def _rewritten(lowered: Lowered, thetas: Mapping[str, Thetas], drawn: Drawn) -> Callable[..., Any]:
    """Returns the program in which each sample has its morphism applied.

    What is computed from parameters is that of the program's last run.
    """
    moves: dict[int, list[_Move]] = {}
    masks: dict[int, list[_Mask]] = {slot: [] for slot in lowered.taps}
    for space in lowered.spaces:
        prunes, splits = drawn.of(space)
        for edge in space.edges:
            for slot in edge.taps:
                masks[slot].append(_Mask(edge, prunes))
        if space.split is None or splits is None or not space.split.is_located:
            continue
        for producer in space.split.producers:
            move = _Move(producer, thetas[space.name][producer.parameter], splits)
            moves.setdefault(producer.y, []).append(move)
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
