"""Ways to find theta for single splits, behind one interface: the learner's, and what it is compared with."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from morphir.ir.graph import Graph
from morphir.ir.state import evaluation_mode
from morphir.morphisms.split import Split
from morphir.runtime.fidelity.truth import true_changes
from morphir.runtime.growing.config import GrowthConfig
from morphir.runtime.growing.learning import learn_epoch, new_learner
from morphir.runtime.growing.line_search import scaled
from morphir.runtime.growing.schedule import theta_rate
from morphir.runtime.growing.training import Batches, Loss, LossMeter, Placement, call, count_steps, mean_loss
from morphir.runtime.learning.learner import Learner
from morphir.runtime.learning.theta import Theta
from passes.transform import transform

_SPHERE_RATE = 0.03
"""A step of the search for a direction, relative to theta."""

Place = tuple[str, int]
"""Space and group."""
Splits = Mapping[Place, Split]


@dataclass(frozen=True)
class Problem:
    """What theta is to be found for.

    Attributes:
        graph: The trained network; left as it is.
        places: The splits.
        batches: From an epoch's number to the training data.
        loss: Of outputs and targets, one a sample.
        placement: Device, autocast, memory format.
        config: How theta is learned: what moves it, its rate, its start, the spaces to keep, the seed.
        epochs: For how many epochs the learner learns.
    """

    graph: Graph
    places: Sequence[Place]
    batches: Callable[[int], Batches]
    loss: Loss
    placement: Placement
    config: GrowthConfig = field(default_factory=lambda: GrowthConfig.of({}))
    epochs: int = 1

    def steps(self) -> Iterator[tuple[Any, Any]]:
        """Yields the batches of all epochs, on the device."""
        for epoch in range(self.epochs):
            for inputs, targets in self.batches(epoch):
                yield self.placement.move(inputs), self.placement.move(targets)

    def learner(self, **overrides: Any) -> Learner:
        """Returns the learner of these splits; of all that the configuration does not keep if there are none.

        Args:
            **overrides: Arguments of the learner that are not to be the configuration's.
        """
        if self.places:
            overrides = {"spaces": list(dict.fromkeys(space for space, _ in self.places)), **overrides}
        return new_learner(self.graph, self.loss, self.config, count_steps(self.batches(0)), **overrides)

    def teach(self, learner: Learner) -> None:
        """Lets a learner learn for all epochs, as a growth run does.

        Raises:
            NonFiniteLossError: if a loss is not finite.
        """
        for epoch in range(self.epochs):
            meter = LossMeter(f"epoch {epoch + 1} of learning", self.config.check_every)
            batches = self.batches(epoch)
            learn_epoch(learner, batches, self.config, self.placement, meter, epoch=epoch, epochs=self.epochs)
            meter.mean()


class ThetaLearner(ABC):
    """Finds theta for every split of a problem."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables call it."""

    @abstractmethod
    def learn(self, problem: Problem) -> Splits:
        """Returns the splits with their theta."""


@dataclass(frozen=True)
class GaussNewton(ThetaLearner):
    """All splits of the network at once, by their estimates (the paper's method).

    Attributes:
        curvature: The second-order term.
    """

    curvature: str

    @property
    def name(self) -> str:
        """The curvature."""
        return self.curvature

    def learn(self, problem: Problem) -> Splits:
        """One pass over the data an epoch, whatever the number of splits."""
        learner = problem.learner(learn_curvature=self.curvature)
        problem.teach(learner)
        return _splits(learner, problem.places)


PAPER = "paper"
"""The name of the paper's own learner."""
_OF_THETA = ("theta_optimizer", "theta_lr", "theta_lr_absolute", "theta_lr_schedule", "learn_curvature")


@dataclass(frozen=True)
class PaperLearner(ThetaLearner):
    """The paper's own: its term, and Adam at one constant rate for all kernels, as in preset ``paper``."""

    @property
    def name(self) -> str:
        """The name."""
        return PAPER

    def learn(self, problem: Problem) -> Splits:
        """As :class:`GaussNewton`, whatever the configuration says of theta."""
        paper = GrowthConfig.preset(PAPER)
        options = {option: getattr(paper, option) for option in _OF_THETA}
        problem = replace(problem, config=problem.config.model_copy(update=options))
        return GaussNewton(paper.learn_curvature).learn(problem)


@dataclass(frozen=True)
class SteepestDescent(ThetaLearner):
    """The direction of steepest descent at theta = 0, then a line search on the true loss.

    The loss is even in theta, so its first term is quadratic: the direction is the least eigenvector of the
    splitting matrix (Wu et al. 2019), found here by descent on a sphere of a small radius.

    Attributes:
        samples: Training samples for the line search.
        factors: Multiples of the kernel's own norm that are tried.
        radius: Norm of theta relative to the kernel's while the direction is sought.
    """

    samples: int = 1000
    factors: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    radius: float = 0.02

    @property
    def name(self) -> str:
        """The name."""
        return "steepest"

    def learn(self, problem: Problem) -> Splits:
        """As many batches as the learner sees, then an evaluation for each split and factor."""
        rate = _SPHERE_RATE * self.radius
        learner = problem.learner(learn_curvature="none", init_scale=self.radius, lr=rate, absolute_lr=False)
        norms = {key: _row_norms(theta.value, theta.out_axis) for key, theta in _named(learner)}
        for inputs, targets in problem.steps():
            with problem.placement.autocast():
                learner.step(inputs, targets)
            for key, theta in _named(learner):
                with torch.no_grad():
                    now = _row_norms(theta.value, theta.out_axis)
                    theta.value.mul_(norms[key] / now.clamp_min(torch.finfo(now.dtype).tiny))
        batches = list(_first(problem.batches(0), self.samples))
        return {
            (split.space, split.index): self._searched(problem, split, batches)
            for split in _splits(learner, problem.places).values()
        }

    def _searched(self, problem: Problem, split: Split, batches: Batches) -> Split:
        tried = [scaled([split], factor / self.radius)[0] for factor in self.factors]
        changes = list(true_changes(problem.graph, tried, batches, problem.loss, problem.placement))
        best = min(range(len(tried)), key=changes.__getitem__)
        found = tried[best]
        assert isinstance(found, Split)
        return found


@dataclass(frozen=True)
class ExpandedNetwork(ThetaLearner):
    """Each split on its own, by Adam on the loss of the network that it was really applied to.

    Its rate is that of theta's learner, and falls as that does.

    Attributes:
        steps: Optimisation steps for each split.
    """

    steps: int = 100

    @property
    def name(self) -> str:
        """The name."""
        return "expanded"

    def learn(self, problem: Problem) -> Splits:
        """So many training steps of the whole network for every single split."""
        start = _splits(problem.learner(learn_curvature="none"), problem.places)
        batches = list(islice(problem.steps(), self.steps))
        return {place: self._optimised(problem, split, batches) for place, split in start.items()}

    def _optimised(
        self, problem: Problem, split: Split, batches: Sequence[tuple[object, torch.Tensor]]
    ) -> Split:
        expanded = copy.deepcopy(problem.graph)
        transform(expanded, [replace(split, theta=None)])
        directions = _directions(expanded, problem.graph, split)
        weights = {key: expanded.get_parameter(key).detach() for key in directions}
        thetas = {key: value.clone().requires_grad_() for key, value in (split.theta or {}).items()}
        rates = [self._rate(problem, key) for key in thetas]
        groups = [{"params": [theta]} for theta in thetas.values()]
        optimizer = torch.optim.Adam(groups)
        with evaluation_mode(expanded):
            for step in range(self.steps):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = theta_rate(rate, problem.config.theta_lr_schedule, step / self.steps)
                inputs, targets = batches[step % len(batches)]
                moved = {key: weights[key] + directions[key](theta) for key, theta in thetas.items()}
                with problem.placement.autocast():
                    outputs = torch.func.functional_call(_Called(expanded), _prefixed(moved), (inputs,))
                    value = mean_loss(problem.loss, outputs, targets)
                optimizer.zero_grad(set_to_none=True)
                gradients = torch.autograd.grad(value, list(thetas.values()))
                for theta, gradient in zip(thetas.values(), gradients, strict=True):
                    theta.grad = gradient
                optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        return replace(split, theta={key: theta.detach() for key, theta in thetas.items()})

    def _rate(self, problem: Problem, parameter: str) -> float:
        kernel = problem.graph.get_parameter(parameter).detach()
        relative = 1.0 if problem.config.theta_lr_absolute else float(kernel.square().mean().sqrt())
        return problem.config.theta_lr * relative


@dataclass(frozen=True)
class RandomDirections(ThetaLearner):
    """Random directions, each with the norm of another learner's theta.

    Attributes:
        norms: The other learner's splits.
    """

    norms: Splits

    @property
    def name(self) -> str:
        """The name."""
        return "random"

    def learn(self, problem: Problem) -> Splits:
        """Draws from the normal distribution."""
        generator = torch.Generator().manual_seed(problem.config.seed + 17)
        return {place: _random(self.norms[place], generator) for place in problem.places}


class _Called(nn.Module):
    """Calls a network on whatever form its inputs have."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: object) -> object:
        return call(self.network, inputs)


def _prefixed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"network.{key}": tensor for key, tensor in tensors.items()}


def _splits(learner: Learner, places: Iterable[Place]) -> dict[Place, Split]:
    """Returns the splits that a learner learns, with its theta."""
    return {
        (space, group): Split(
            space, group, {key: theta.of_group(group) for key, theta in learner.thetas[space].items()}
        )
        for space, group in places
        if space in learner.thetas
    }


def _named(learner: Learner) -> Iterator[tuple[tuple[str, str], Theta]]:
    for space, thetas in learner.thetas.items():
        for parameter, theta in thetas.items():
            yield (space, parameter), theta


def _row_norms(value: torch.Tensor, axis: int) -> torch.Tensor:
    others = [dim for dim in range(value.dim()) if dim != axis]
    return value.detach().square().sum(others, keepdim=True).sqrt()


def _first(batches: Batches, samples: int) -> Iterator[tuple[object, torch.Tensor]]:
    for inputs, targets in batches:
        if samples <= 0:
            return
        yield inputs, targets
        samples -= len(targets)


def _directions(
    expanded: Graph, graph: Graph, split: Split
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Returns, for each producer's kernel, how theta moves the kernel of the expanded network.

    The passes are linear in theta: what they make of a theta, less what they make of 0.
    """
    found: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    for key, theta in (split.theta or {}).items():
        moved = copy.deepcopy(graph)
        marks = torch.arange(1, theta.numel() + 1, dtype=theta.dtype, device=theta.device).view(theta.shape)
        size = float(graph.get_parameter(key).detach().abs().max()) + 1.0
        transform(moved, [replace(split, theta={key: marks * size})])
        change = (moved.get_parameter(key).detach() - expanded.get_parameter(key).detach()) / size
        places = change.round().to(torch.int64)
        found[key] = _Placed(places)
    return found


@dataclass(frozen=True)
class _Placed:
    """Lays theta's entries out where an integer tensor says: n is entry n - 1, -n its negative, 0 none."""

    places: torch.Tensor

    def __call__(self, theta: torch.Tensor) -> torch.Tensor:
        values = torch.cat([theta.new_zeros(1), theta.reshape(-1)])[self.places.abs()]
        return values * self.places.sign()


def _random(like: Split, generator: torch.Generator) -> Split:
    thetas = like.theta or {}
    drawn = {
        key: torch.randn(theta.shape, generator=generator, dtype=torch.float64).to(theta)
        for key, theta in thetas.items()
    }
    wanted = math.sqrt(sum(float(theta.square().sum()) for theta in thetas.values()))
    found = math.sqrt(sum(float(theta.square().sum()) for theta in drawn.values())) or 1.0
    return replace(like, theta={key: theta * (wanted / found) for key, theta in drawn.items()})
