"""``Learner``: learns every split, and scores every split and prune, of every space at once.

The model's weights are frozen and in evaluation mode during a step. One forward and one data-gradient pass,
or two where a curvature samples the Fisher, serve all spaces; each then costs one convolution for delta and
one for theta's gradient. On a CPU, images are laid out channels last for that.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from morphir.analysis.cost import delta_cost
from morphir.errors import MorphirError
from morphir.ir.channels import ChannelSpace
from morphir.ir.graph import Graph, require_graph
from morphir.ir.remarks import Remark
from morphir.ir.state import Holdings, frozen, require_autograd
from morphir.ir.trace import ExampleArgument, keywords_in_order, split_inputs
from morphir.morphisms.base import Morphism
from morphir.morphisms.prune import Prune
from morphir.morphisms.split import Split
from morphir.runtime.learning.applied import apply_to_samples
from morphir.runtime.learning.batches import check_loss_is_callable
from morphir.runtime.learning.calibration import Calibration, CalibrationError, exactly
from morphir.runtime.learning.curvature import AUTO, BENT, Curvature, check_name, resolved
from morphir.runtime.learning.estimate import estimate_splits
from morphir.runtime.learning.fisher import is_known
from morphir.runtime.learning.fused_projection import FusedProjection
from morphir.runtime.learning.learner_state import (
    State,
    check_fits,
    load_theta_state,
    tensor_of,
    theta_state,
)
from morphir.runtime.learning.loss_check import Loss, check_is_mean
from morphir.runtime.learning.lowering import lower
from morphir.runtime.learning.model_pass import Forward, Pass, detached, run_backward, run_forward
from morphir.runtime.learning.options import check_options
from morphir.runtime.learning.precision import autocast_dtype, single
from morphir.runtime.learning.programs import Lowered, SpaceProgram, SplitProgram
from morphir.runtime.learning.projection import (
    PlainProjection,
    Project,
    Projection,
    edge_values,
    estimate_prunes,
)
from morphir.runtime.learning.score_average import ScoreAverage
from morphir.runtime.learning.theta import Theta, group_kernels, initial_thetas, warn_of_half
from morphir.runtime.learning.theta_optimizer import theta_optimizer


@dataclass(frozen=True)
class StepResult:
    """One learning step; its tensors are on the device, and reading them waits for it.

    Attributes:
        loss: Mean loss of the batch, a scalar.
        outputs: The model's outputs in evaluation mode.
    """

    loss: torch.Tensor
    outputs: Any


@dataclass(frozen=True)
class Score:
    """One morphism's estimate.

    Attributes:
        morphism: The split, with the learned theta, or the prune.
        delta_loss: Estimated change of the mean loss.
        delta_parameters: Exact change of the number of parameters.
        delta_macs: Exact change of the multiply-accumulates of one sample's forward pass.
    """

    morphism: Morphism
    delta_loss: float
    delta_parameters: int
    delta_macs: int


class Learner:
    """Learns and scores the morphisms of one graph, as it is now.

    Args:
        graph: The graph. Its parameters, gradients, modes and ``requires_grad`` flags are as before after
            each step.
        loss: ``loss(outputs, targets)`` returns one loss a sample, ``[S]``, or their mean.
        learn_curvature: What theta is learned against: ``"batch"`` (the paper), ``"fisher"``,
            ``"shrunk-fisher"``, ``"mixed"``, ``"empirical-fisher"``, ``"sample"``; ``"auto"`` is ``"mixed"``
            for a classifier (logits ``[N, K]``, integer labels ``[N]``, a loss with a second derivative by
            them), ``"batch"`` for other outputs or targets; ``"none"`` is the first order alone.
        score_curvature: What the scores are estimated with; ``"auto"`` is ``"shrunk-fisher"`` for a
            classifier, else ``"batch"``.
        optimizer: What moves theta: ``"adam-mini"``, Adam with one second moment for each output channel's
            kernel, or ``"adam"``, one for each entry, as the paper does.
        lr: Its learning rate, relative to the kernel's root mean square, so that a layer's scale, which a
            batch norm undoes, does not matter. The attribute ``lr`` changes it: one that falls to 0 on a
            cosine, as a growth run's does, may start four times as high, and learns more.
        absolute_lr: Take ``lr`` as it is for every kernel, as the paper does.
        ema: Weight of the newest batch in the scores' moving average; the paper's is (batch / dataset) / 2.
        init_scale: theta's initial root mean square, relative to its kernel's. theta = 0 is stationary.
        spaces: Names of the spaces to work on; all where None.
        compile: Compile the elementwise work of every space into fused kernels by ``torch.compile``. The
            first steps take longer, seconds for each kind of region; later ones, and later runs, find the
            kernels in PyTorch's cache.
        seed: Seed of theta's initial values and of the sampled Fisher.

    Attributes:
        refused: Space name to the remark why not all is learned that the analysis allows.

    Raises:
        MorphirError: for an unknown curvature, optimizer or space, or an option out of range.
    """

    def __init__(
        self,
        graph: Graph,
        loss: Loss,
        *,
        learn_curvature: str = AUTO,
        score_curvature: str = AUTO,
        optimizer: str = "adam-mini",
        lr: float = 5e-2,
        absolute_lr: bool = False,
        ema: float = 0.02,
        init_scale: float = 0.1,
        spaces: Collection[str] | None = None,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        require_autograd("a learner")
        require_graph(graph)
        check_loss_is_callable(loss)
        check_options(lr=lr, ema=ema, init_scale=init_scale, spaces=spaces, seed=seed)
        seed = operator.index(seed)
        for name in spaces or ():
            graph.space(name)
        self.graph = graph
        self.loss = loss
        self.learn_curvature = check_name(learn_curvature)
        self.score_curvature = check_name(score_curvature)
        self.ema = ema
        self.lowered: Lowered = lower(graph, spaces)
        self.refused: Mapping[str, Remark] = self.lowered.refused
        programs = {s.name: s.split for s in self.lowered.spaces if s.split is not None}
        self._project = {name: _projection(split, compile=compile) for name, split in programs.items()}
        self._history = len(graph.history)
        self._holdings = Holdings(graph)
        self._thetas = initial_thetas(graph, self.lowered.spaces, init_scale, seed)
        warn_of_half(self._all_thetas(), graph)
        self._optimizer = theta_optimizer(optimizer)(self._all_thetas(), lr, absolute=absolute_lr)
        # No values are drawn on the meta device, and it has no generator.
        meta = graph.device.type == "meta"
        self._generator = None if meta else torch.Generator(graph.device).manual_seed(seed + 1)
        double = any(theta.value.dtype == torch.float64 for theta in self._all_thetas())
        dtype = torch.float64 if double else torch.float32
        self._average = ScoreAverage(self.lowered.spaces, dtype, graph.device)
        self._calibration = Calibration(self.lowered.spaces, graph)

    def step(self, inputs: ExampleArgument, targets: Any) -> StepResult:
        """Learns from one batch; only the first step waits for the device.

        That one calls the loss once more, on twice the batch, to see that it is no sum.

        Args:
            inputs: What the model takes: a tensor, a tuple of arguments or a dict of keyword arguments.
            targets: What the loss takes beside the model's outputs.

        Raises:
            MorphirError: if the graph was rewritten or moved since this learner was made, if the batch
                does not fit the model or the loss, if loss and curvature do not fit, or if the loss is the
                batch's sum.
        """
        require_autograd("a learning step")
        self._check_current()
        args, kwargs = split_inputs(detached(inputs))
        values = [*args, *keywords_in_order(self.graph, len(args), kwargs)]
        projections: dict[str, list[Projection]] = {}
        with frozen(self._holdings.modules, self._holdings.tensors), torch.no_grad():
            forward = run_forward(self.lowered, values, targets, self.loss)
            if not self._average.steps:
                check_is_mean(self.loss, detached(forward.outputs), targets, forward.loss)
            learn, score = self._curvatures(forward, targets)

            def work(space: SpaceProgram, run: Pass) -> None:
                projections[space.name] = self._work(space, run, learn)

            sampled = learn.sampled is not None or score.sampled is not None
            try:
                run_backward(forward, self.lowered, targets, self._generator, work, sample=sampled)
                self._optimizer.move()
            except BaseException:
                self._optimizer.drop()
                raise
            ordered = [projection for space in self.lowered.spaces for projection in projections[space.name]]
            self._average.add(ordered, forward.run.losses, score, self.ema)
        return StepResult(forward.run.losses.mean, detached(forward.outputs))

    def calibrate(self, inputs: ExampleArgument, targets: Any) -> None:
        """Measures on one batch how far the scores' second-order terms are off, once theta is learned.

        It takes about two steps: a pass with its gradients, and one in which each sample has one morphism
        really applied, drawn at random. :meth:`scores` then multiplies the second-order terms of each space's
        splits, and of its prunes, by what fits all batches so far
        (:mod:`morphir.runtime.learning.calibration`). All is computed without autocast.

        Args:
            inputs: As for :meth:`step`.
            targets: As for :meth:`step`.

        Raises:
            CalibrationError: as :meth:`check_calibration` does, if the loss function returns the batch's
                mean, or if the model runs under autocast alone.
            MorphirError: as :meth:`step` does.
        """
        require_autograd("a calibration")
        self._check_current()
        self.check_calibration()
        args, kwargs = split_inputs(detached(inputs))
        values = [*args, *keywords_in_order(self.graph, len(args), kwargs)]
        if autocast_dtype(self.graph.device.type) is not None:
            values = pytree.tree_map(single, values)
        with (
            frozen(self._holdings.modules, self._holdings.tensors),
            torch.no_grad(),
            exactly(self.graph.device.type),
        ):
            forward = run_forward(self.lowered, values, targets, self.loss)
            losses = forward.run.losses
            if losses.samples is None:
                raise CalibrationError(
                    "a calibration needs the loss of each sample, and the loss function returns their mean",
                    hint='return one loss a sample: reduction="none"',
                )
            _, score = self._curvatures(forward, targets)
            if self._calibration.is_empty:
                return
            drawn = self._calibration.draw(forward.run.samples, self._thetas, self._generator)
            thetas = {name: self._values(name) for name in self._thetas}
            batch, sample = (values, targets), score.sampled is not None
            changes, projections = apply_to_samples(
                self.lowered, forward, batch, self.loss, thetas, drawn, self._generator, sample=sample
            )
            self._calibration.add(drawn, changes, projections, losses, score)

    def check_calibration(self) -> None:
        """Raises :class:`CalibrationError` if samples depend on each other, or scores are of first order."""
        if not self.lowered.samples_apart:
            raise CalibrationError("a calibration needs samples that do not depend on each other")
        if self.score_curvature not in (AUTO, *BENT):
            raise CalibrationError(
                f"with score_curvature {self.score_curvature!r} there is no second-order term to calibrate"
            )

    def scores(self) -> list[Score]:
        """Returns the estimate of every legal split and prune, in program order; waits for the device.

        Raises:
            MorphirError: if no step was made yet, or if a loss was not finite; names the step.
        """
        self._check_current()
        self.check_finite()
        if not self._average.steps:
            raise MorphirError(
                "the learner has made no step yet", hint="call learner.step(inputs, targets) first"
            )
        estimates = iter(self._average.values(self._calibration.factors()))
        scores: list[Score] = []
        for program in self.lowered.spaces:
            space = self.graph.space(program.name)
            prunes = [next(estimates) for _ in range(space.width)]
            splits = [next(estimates) for _ in range(space.width)] if program.split is not None else []
            scores += [
                self._score(self._split(space, i), x) for i, x in enumerate(splits) if _may(space, i, Split)
            ]
            scores += [
                self._score(Prune(space.name, i), x) for i, x in enumerate(prunes) if _may(space, i, Prune)
            ]
        return scores

    @property
    def lr(self) -> float:
        """The learning rate of theta, in the unit that the learner was made with."""
        return self._optimizer.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        check_options(lr=lr)
        self._optimizer.lr = lr

    @property
    def thetas(self) -> Mapping[str, Mapping[str, Theta]]:
        """Space to producer parameter to theta, as it is learned."""
        return self._thetas

    def check_finite(self) -> None:
        """Raises :class:`MorphirError` if a loss so far was not finite; waits for the device."""
        step = self._average.first_bad_step()
        if step:
            raise MorphirError(
                f"the loss of learning step {step} was not finite",
                hint="check the data of that step and the model's weights; a smaller learning rate may help",
            )

    def state_dict(self) -> dict[str, torch.Tensor | float]:
        """Returns all that a bit-identical continuation needs: tensors and plain numbers under flat names."""
        state = self._average.state_dict() | self._calibration.state_dict()
        state |= theta_state(self._all_thetas(), self._optimizer)
        if self._generator is not None:
            state["generator"] = self._generator.get_state()
        return state

    def load_state_dict(self, state: State) -> None:
        """Continues from :meth:`state_dict` of a learner with the same options on the same graph.

        Raises:
            MorphirError: if the state is of another graph or optimizer of theta; nothing is changed then.
        """
        thetas = self._all_thetas()
        shapes = {**self._average.shapes(), **self._calibration.shapes()}
        check_fits(state, shapes, thetas, self._optimizer)
        self._average.load_state_dict(state)
        self._calibration.load_state_dict(state)
        if self._generator is not None and "generator" in state:
            self._generator.set_state(tensor_of(state, "generator").cpu())
        load_theta_state(thetas, self._optimizer, state)

    def _curvatures(self, forward: Forward, targets: Any) -> tuple[Curvature, Curvature]:
        """Returns what to learn with, and what to score with."""
        named = self.learn_curvature, self.score_curvature
        known = AUTO in named and is_known(forward.outputs, targets, forward.loss)
        learn = resolved(self.learn_curvature, "mixed", fisher_is_known=known)
        score = resolved(self.score_curvature, "shrunk-fisher", fisher_is_known=known)
        if forward.run.losses.samples is None and (learn.per_sample or score.per_sample):
            raise MorphirError(
                "this curvature needs the loss of each sample, and the loss function returns their mean",
                hint='return one loss a sample: reduction="none"',
            )
        return learn, score

    def _work(self, space: SpaceProgram, run: Pass, learn: Curvature) -> list[Projection]:
        """Estimates one space's prunes and splits, and hands theta's gradients to the optimizer."""
        edges = edge_values(space, run)
        if not any(edges):
            zeros = run.losses.mean.new_zeros(run.samples, space.width)
            nothing = Projection(zeros, None if run.sampled is None else zeros)
            return [nothing] * (1 + (space.split is not None))
        if space.split is None:
            return [estimate_prunes(edges, run.samples, sampled=run.sampled is not None)]
        thetas = self._values(space.name)
        term = learn.below(space.layers_above)
        estimate = estimate_splits(space.split, self._project[space.name], thetas, edges, run, term)
        self._optimizer.take(self._thetas[space.name], estimate.gradients)
        return [estimate.prunes, estimate.splits]

    def _values(self, space: str) -> dict[str, torch.Tensor]:
        return {parameter: theta.value for parameter, theta in self._thetas[space].items()}

    def _split(self, space: ChannelSpace, index: int) -> Split:
        return Split(space.name, index, group_kernels(self._thetas[space.name], index))

    def _score(self, morphism: Morphism, delta_loss: float) -> Score:
        change = delta_cost(self.graph, cast("Any", morphism).kind, morphism.space, morphism.index)
        return Score(morphism, delta_loss, change.parameters, change.macs)

    def _all_thetas(self) -> list[Theta]:
        return [theta for own in self._thetas.values() for theta in own.values()]

    def _check_current(self) -> None:
        if len(self.graph.history) != self._history or not self._holdings.are_current():
            raise MorphirError(
                "the graph was rewritten or moved since this learner was made",
                hint="make a new Learner(graph, loss) after transform(...) and graph.to(...)",
            )


def _projection(split: SplitProgram, *, compile: bool) -> Project:
    if not compile:
        return PlainProjection(split.region)
    return FusedProjection(split.region)


def _may(space: ChannelSpace, index: int, kind: type[Morphism]) -> bool:
    return space.verdict(index).kind in kind.allowed
